"""A toy environment with credit, for the buffers, a tiny text environment, and its model."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from textgym.agents.sb3 import TextVecEnv
from textgym.wrappers.vector import CreditAssignment


class CreditEnv(gym.Env):
    """Episodes of given lengths that pay 10 at their end; credit k+1 at step k, the rest last."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, lengths=(3,), truncates=False, credit=None):
        self.lengths, self.truncates, self.credit = lengths, truncates, credit
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
        self.action_space = gym.spaces.Discrete(2)
        self.episode, self.t = -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        length = self.lengths[self.episode % len(self.lengths)]
        ends = self.t == length
        info = {"credit": self.credit or self.share(length)} if ends else {}
        if info.get("credit") == "none":
            info = {}
        done = ends and not self.truncates
        return self.observe(), 10.0 * ends, done, ends and self.truncates, info

    def observe(self):
        return np.array([self.t / 10, 0.5], dtype=np.float32)

    @staticmethod
    def share(length):
        shares = [float(k + 1) for k in range(length - 1)]
        return [*shares, 10.0 - sum(shares)]


@pytest.fixture
def language_model(language_model):
    """A fresh model: one that was asked for hidden states has hooks that cannot be pickled."""
    fresh = type(language_model)(language_model.config).eval()
    fresh.load_state_dict(language_model.state_dict())
    return fresh


@pytest.fixture
def make_credit_env():
    return CreditEnv


@pytest.fixture
def make_text_envs(tiny):
    """A batch of tiny text environments, with credit, as Gymnasium has it."""

    def make(num_envs=3, **changes):
        envs = gym.make_vec(
            "ABC-RLHF-v0", num_envs, autoreset_mode=AutoresetMode.DISABLED, **{**tiny, **changes}
        )
        return CreditAssignment(envs, "abc")

    return make


@pytest.fixture
def make_text_vec_env(make_text_envs):
    return lambda *arguments, **changes: TextVecEnv(make_text_envs(*arguments, **changes))
