from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from textgym.agents.sb3.credit import change_of_advantages, credit_of, rewards_of_the_rest
from textgym.errors import InvalidArgumentError

CREDIT = np.array([0.1, 0.2, 0.3, 0.2, 0.2], dtype=np.float32)


def test_a_whole_episode_gets_its_credit():
    paid = np.array([0, 0, 0, 0, 1], dtype=np.float32)
    np.testing.assert_array_equal(rewards_of_the_rest(paid, CREDIT, gamma=1.0), CREDIT)
    np.testing.assert_array_equal(rewards_of_the_rest(paid, CREDIT, gamma=0.9), CREDIT)


def test_the_first_step_at_hand_gets_the_credit_of_the_lost_ones():
    paid = np.array([0, 0, 1], dtype=np.float32)
    rewards = rewards_of_the_rest(paid, CREDIT, gamma=1.0)
    np.testing.assert_allclose(rewards, [0.6, 0.2, 0.2], atol=1e-7)


def test_what_the_lost_steps_were_paid_is_not_paid_again():
    # Five steps that paid .05 each and 1 at the end: the lost two had .1, of a credit of .3.
    paid = np.array([0.05, 0.05, 1.05], dtype=np.float32)
    credit = CREDIT * 1.25  # sums to what was paid
    rewards = rewards_of_the_rest(paid, credit, gamma=1.0)
    np.testing.assert_allclose(rewards[0], credit[2] + credit[0] + credit[1] - 0.1, atol=1e-6)


def test_the_discounted_return_from_the_first_step_at_hand_is_what_was_paid():
    paid = np.array([0.5, 0, 1], dtype=np.float32)
    rewards = rewards_of_the_rest(paid, CREDIT, gamma=0.5)
    np.testing.assert_allclose(rewards[1:], [0.2, 0.2])
    assert rewards @ [1, 0.5, 0.25] == pytest.approx(0.5 + 0.25)


def test_the_credit_handed_over_is_left_as_it_was():
    before = CREDIT.copy()
    rewards_of_the_rest(np.zeros(2, dtype=np.float32), CREDIT, gamma=1.0)
    np.testing.assert_array_equal(CREDIT, before)


def test_advantages_change_as_the_buffer_would_compute_them():
    rng = np.random.default_rng(0)
    num_steps, num_envs = 12, 3
    buffer = RolloutBuffer(
        num_steps, spaces.Box(-1, 1, (1,)), spaces.Discrete(2),
        gamma=0.9, gae_lambda=0.7, n_envs=num_envs,
    )  # fmt: skip
    buffer.values[:] = rng.normal(size=(num_steps, num_envs))
    buffer.episode_starts[:] = rng.random((num_steps, num_envs)) < 0.3
    last_values, dones = torch.randn(num_envs), np.array([True, False, False])
    rewards = rng.normal(size=(2, num_steps, num_envs)).astype(np.float32)
    advantages = []
    for one in rewards:
        buffer.rewards[:] = one
        buffer.compute_returns_and_advantage(last_values, dones)
        advantages.append(buffer.advantages.copy())
    change = change_of_advantages(rewards[1] - rewards[0], buffer.episode_starts, 0.9 * 0.7)
    np.testing.assert_allclose(change, advantages[1] - advantages[0], atol=1e-5)


def test_an_episode_cut_short_may_come_without_credit():
    assert credit_of({"TimeLimit.truncated": True}) is None


@pytest.mark.parametrize("info", [{}, {"credit": 3.0}, {"credit": []}, {"credit": [[1.0]]}])
def test_credit_that_cannot_be_used_is_refused(info):
    with pytest.raises(InvalidArgumentError, match="credit"):
        credit_of(info)
