"""The single-file PPO of the examples treats the steps that only reset an environment as none."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "cleanrl_style_ppo.py"
LENGTH = 3


@pytest.fixture(scope="module")
def ppo():
    spec = importlib.util.spec_from_file_location("cleanrl_style_ppo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their annotations up there.
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Counter(gym.Env):
    """Episodes of three steps, which pay 1, 2 and 3; observations count them from 0 to 3."""

    observation_space = gym.spaces.Box(0, LENGTH, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, truncates=False):
        self.truncates = truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        ends, seen = self.count == LENGTH, np.full(1, self.count, np.float32)
        return seen, float(self.count), ends and not self.truncates, ends and self.truncates, {}


@pytest.fixture
def sampled(ppo):
    """Eight steps of a row that terminates and of one that is cut off: two episodes of each."""
    torch.manual_seed(0)
    envs = gym.vector.SyncVectorEnv([Counter, partial(Counter, truncates=True)])
    agent = ppo.Agent(1, 2)
    sampler = ppo.Sampler(envs, seed=0)
    rollout, returns = sampler.sample(agent, 2 * (LENGTH + 1))
    with torch.no_grad():
        return agent, rollout, agent.value(sampler.obs), returns


def test_resets_are_marked_and_returns_are_those_of_the_episodes(sampled):
    _, rollout, _, returns = sampled
    assert rollout.is_reset.nonzero()[:, 0].tolist() == [3, 3, 7, 7]
    assert rollout.obs[rollout.is_reset].eq(LENGTH).all()
    assert rollout.obs[~rollout.is_reset].lt(LENGTH).all()
    assert returns == [6.0] * 4


def test_advantages_are_those_of_each_episode_alone(ppo, sampled):
    agent, rollout, last_value, _ = sampled
    gamma, gae_lambda = 0.9, 0.7
    found = ppo.advantages_of(rollout, last_value, gamma, gae_lambda)
    with torch.no_grad():
        values = agent.value(torch.arange(LENGTH + 1.0)[:, None]).tolist()
    for row, end in enumerate((0.0, values[LENGTH])):  # finished: worth nothing; cut off: V
        following = [*values[1:LENGTH], end]
        deltas = [t + 1 + gamma * following[t] - values[t] for t in range(LENGTH)]
        expected = [
            sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, LENGTH))
            for t in range(LENGTH)
        ]
        for start in (0, LENGTH + 1):
            assert found[start : start + LENGTH, row].tolist() == pytest.approx(expected, abs=1e-5)


def test_nothing_is_learned_from_a_reset(ppo, sampled):
    agent, rollout, last_value, _ = sampled
    start = {name: tensor.clone() for name, tensor in agent.state_dict().items()}

    def learn(rollout):
        agent.load_state_dict(start)
        torch.manual_seed(1)
        args = ppo.Arguments(num_minibatches=2)
        ppo.update(agent, torch.optim.Adam(agent.parameters()), rollout, last_value, args)
        return torch.nn.utils.parameters_to_vector(agent.parameters()).detach()

    odd = rollout._replace(
        obs=rollout.obs.masked_fill(rollout.is_reset[..., None], 50.0),
        actions=rollout.actions.masked_fill(rollout.is_reset, 1),
        logprobs=rollout.logprobs.masked_fill(rollout.is_reset, -9.0),
        rewards=rollout.rewards.masked_fill(rollout.is_reset, 1000.0),
    )
    learned = learn(rollout)
    assert torch.equal(learned, learn(odd))
    marked_as_steps = odd._replace(is_reset=torch.zeros_like(odd.is_reset))
    assert not torch.equal(learned, learn(marked_as_steps))


def test_environments_that_reset_otherwise_are_refused(ppo):
    envs = gym.vector.SyncVectorEnv([Counter], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="next step"):
        ppo.Sampler(envs, seed=0)
