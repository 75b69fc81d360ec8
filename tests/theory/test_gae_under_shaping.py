"""Shaping and the critic: adding a potential equals starting the critic at it (Wiewiora, 2003)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.theory.process import per_step, prompt_scores, shaped_rewards, sparse_rewards
from textgym.agents.ppo import gae
from textgym.credit.potentials import AttentionWeightedPrefixScore

GAMMA, BETA = 0.9, -1.5


@pytest.fixture(scope="module", params=["zero", "prompt"])
def case(process, request):
    """Sparse and shaped rewards, the potential and a random critic, per step, float64 tensors."""
    potential = AttentionWeightedPrefixScore()
    scored = process.read(potential.readouts)
    after = BETA * per_step(potential(scored), scored.completion_mask)
    at_start = BETA * prompt_scores(process)[:, None]
    before = np.concatenate([at_start, after[:, :-1]], axis=1)  # Φ where a step starts from
    if request.param == "zero":
        before -= at_start
    critic = np.random.default_rng(0).normal(size=process.trajectories.num_states)
    arrays = (
        sparse_rewards(process),
        shaped_rewards(process, potential, BETA, GAMMA, request.param),
        before,
        critic[process.trajectories.states],
        process.mask,
    )
    return [torch.from_numpy(array) for array in arrays]


def test_advantages_of_sampled_returns_fall_by_the_potential(case):
    sparse, shaped, potential, values, mask = case
    plain, _ = gae(sparse, values, mask, GAMMA, 1.0)
    advantages, returns = gae(shaped, values, mask, GAMMA, 1.0)
    expected = plain - potential * mask
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(returns, (expected + values) * mask, atol=1e-5, rtol=0)
    assert (potential * mask).abs().max() > 0.5


@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.5, 0.0])
def test_a_critic_that_is_shifted_by_the_potential_undoes_the_shaping(case, gae_lambda):
    sparse, shaped, potential, values, mask = case
    expected, _ = gae(sparse, values, mask, GAMMA, gae_lambda)
    advantages, _ = gae(shaped, values - potential, mask, GAMMA, gae_lambda)
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_below_one_lambda_shaping_says_more_than_a_baseline_of_the_state(case):
    sparse, shaped, potential, values, mask = case
    plain, _ = gae(sparse, values, mask, GAMMA, 0.5)
    advantages, _ = gae(shaped, values, mask, GAMMA, 0.5)
    assert (advantages - plain + potential * mask).abs().max() > 0.5
