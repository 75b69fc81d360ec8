from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from textgym.agents.sb3.rollout_buffer import add_to_rewards

NUM_STEPS, NUM_ENVS = 12, 3


@pytest.fixture
def make_buffer():
    """A full buffer with the given rewards, whose advantages SB3 has computed."""

    def make(rewards):
        buffer = RolloutBuffer(
            NUM_STEPS, spaces.Box(-1, 1, (1,)), spaces.Discrete(2),
            gamma=0.9, gae_lambda=0.7, n_envs=NUM_ENVS,
        )  # fmt: skip
        rng = np.random.default_rng(0)
        buffer.values[:] = rng.normal(size=(NUM_STEPS, NUM_ENVS))
        buffer.episode_starts[:] = rng.random((NUM_STEPS, NUM_ENVS)) < 0.3
        buffer.rewards[:] = rewards
        last_values, dones = torch.tensor([0.3, -0.2, 1.5]), np.array([True, False, False])
        buffer.compute_returns_and_advantage(last_values, dones)
        return buffer

    return make


def test_advantages_and_returns_are_those_that_the_buffer_would_compute(make_buffer):
    before, after = np.random.default_rng(1).normal(size=(2, NUM_STEPS, NUM_ENVS))
    buffer = make_buffer(before)
    add_to_rewards(buffer, (after - before).astype(np.float32))
    expected = make_buffer(after)
    for name in ("rewards", "advantages", "returns", "values"):
        np.testing.assert_allclose(getattr(buffer, name), getattr(expected, name), atol=1e-5)


def test_changes_add_up_in_any_order(make_buffer):
    before, one, other = np.random.default_rng(2).normal(size=(3, NUM_STEPS, NUM_ENVS))
    one, other = one.astype(np.float32), other.astype(np.float32)
    buffer, reverse = make_buffer(before), make_buffer(before)
    for change in (one, other):
        add_to_rewards(buffer, change)
    for change in (other, one):
        add_to_rewards(reverse, change)
    expected = make_buffer(before + one + other)
    np.testing.assert_allclose(buffer.advantages, expected.advantages, atol=1e-5)
    np.testing.assert_allclose(reverse.returns, expected.returns, atol=1e-5)
