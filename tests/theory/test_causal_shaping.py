"""Potential-based shaping keeps the optimal actions in every state, and the policy gradient.

Ng, Harada & Russell (1999); for episodes, where the potential must be 0 at the end, Grześ (2017).
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch

from tests.theory.process import (
    discounts,
    make_process,
    random_logits,
    reward_to_go_gradient,
    shaped_rewards,
    singly_shaped_rewards,
    sparse_rewards,
)
from textgym.credit import ReferenceValue, ShapingCredit
from textgym.credit.potentials import (
    POTENTIALS,
    AttentionWeightedPrefixScore,
    FunctionPotential,
    Potential,
    PrefixScore,
)
from textgym.exact import cosine, is_causal, optimal_actions, policy_gradient, returns_to_go
from textgym.models import RewardModel


def noise(prompt, completion):
    """A pseudo-random number between -2 and 2 for any state, including the start."""
    text = np.array([*prompt.tolist(), -1, *completion.tolist()])
    return zlib.crc32(text.tobytes()) / 2**30 - 2


class Unanchored(Potential):
    """Noise that depends on the state alone and is not 0 at the start."""

    name = "unanchored"

    def __call__(self, scored):
        relative = FunctionPotential(noise)(scored)
        start = [
            noise(ids[mask], ids[:0])
            for ids, mask in zip(scored.input_ids, scored.prompt_mask, strict=True)
        ]
        return (relative + torch.tensor(start)[:, None]) * scored.completion_mask


class Peeking(Potential):
    """Half the score of the finished text, after every token: it knows how the text ends."""

    name = "peeking"

    def __call__(self, scored):
        return 0.5 * scored.score[:, None] * scored.completion_mask


class CoarseRewardModel(RewardModel):
    """Scores in steps of 1/2, so that many completions are equally good."""

    def read(self, completions, readouts=()):
        scored = super().read(completions, readouts)
        return dataclasses.replace(scored, score=(2 * scored.score).round() / 2)


CAUSAL = {
    **{name: potential() for name, potential in POTENTIALS.items()},
    "first layer, maximum of heads": AttentionWeightedPrefixScore(layers=0, heads="max"),
    "reference value": ReferenceValue([[1.0, -0.5, 0.5], [-1.0, -0.2, 0.3], [0.5, 0.4, -0.6]]),
    "noise": FunctionPotential(noise),
    "noise, not 0 at the start": Unanchored(),
}
causal_potentials = pytest.mark.parametrize("potential", CAUSAL.values(), ids=CAUSAL)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("beta", [1.0, -3.0])
@causal_potentials
def test_paid_shaping_leaves_the_set_of_optimal_actions_in_every_state(
    process, potential, beta, gamma
):
    sparse, paid = sparse_rewards(process), shaped_rewards(process, potential, beta, gamma)
    from_one_forward = process.rewards(ShapingCredit(potential, beta, gamma))
    np.testing.assert_allclose(paid, from_one_forward, atol=1e-5)
    assert np.abs(paid - sparse).mean() > 0.05
    expected = optimal_actions(process.trajectories, sparse, gamma)
    optimal = optimal_actions(process.trajectories, paid, gamma)
    np.testing.assert_array_equal(optimal, expected)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("potential", [PrefixScore(), FunctionPotential(noise)])
def test_ties_between_optimal_actions_stay_ties(process, potential, gamma):
    coarse = CoarseRewardModel(process.reward_model.model, process.reward_model.tokenizer)
    coarse = make_process(coarse)
    expected = optimal_actions(coarse.trajectories, sparse_rewards(coarse), gamma)
    assert (expected.sum(1) > 1).sum() > 10
    paid = shaped_rewards(coarse, potential, 1.0, gamma)
    np.testing.assert_array_equal(optimal_actions(coarse.trajectories, paid, gamma), expected)


@causal_potentials
def test_the_single_environment_is_paid_the_same(process, potential):
    rows = range(0, len(process.starts), 13)
    paid = singly_shaped_rewards(process, potential, -2.0, 0.9, rows)
    expected = process.rewards(ShapingCredit(potential, -2.0, 0.9))[rows]
    np.testing.assert_allclose(paid, expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@causal_potentials
def test_shaping_leaves_the_policy_gradient(process, potential, gamma):
    shaped = process.rewards(ShapingCredit(potential, -2.0, gamma))
    for seed in range(4):
        logits = random_logits(process, seed)
        expected = reward_to_go_gradient(process, logits, sparse_rewards(process), gamma)
        gradient = reward_to_go_gradient(process, logits, shaped, gamma)
        np.testing.assert_allclose(gradient, expected, atol=1e-6)
        assert cosine(gradient, expected) > 1 - 1e-6
        assert np.abs(expected).max() > 1e-3


def test_the_gradient_of_agents_that_leave_out_the_discount_of_the_state_is_kept_too(process):
    shaped = process.rewards(ShapingCredit(gamma=0.9))
    logits = random_logits(process, 0)
    gradients = [
        policy_gradient(process.trajectories, logits, returns_to_go(rewards, process.mask, 0.9))
        for rewards in (shaped, sparse_rewards(process))
    ]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_a_potential_that_peeks_at_later_tokens_keeps_returns_but_not_the_gradient(process):
    sparse, peeking = sparse_rewards(process), process.rewards(ShapingCredit(Peeking(), gamma=0.9))
    np.testing.assert_allclose(
        (peeking * discounts(0.9)).sum(1), (sparse * discounts(0.9)).sum(1), atol=1e-5
    )
    assert not is_causal(process.trajectories, peeking)
    for seed in range(4):
        logits = random_logits(process, seed)
        expected = reward_to_go_gradient(process, logits, sparse, 0.9)
        assert cosine(reward_to_go_gradient(process, logits, peeking, 0.9), expected) < 0.98


def test_shaping_with_another_discount_than_the_agents_changes_the_optimum(process):
    paid = shaped_rewards(process, PrefixScore(), 3.0, gamma=1.0)
    expected = optimal_actions(process.trajectories, sparse_rewards(process), gamma=0.5)
    assert (optimal_actions(process.trajectories, paid, gamma=0.5) != expected).any()
