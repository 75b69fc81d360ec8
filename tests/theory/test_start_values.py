"""Measured from the prompt, every return is lower by a constant per prompt, and nothing else moves.

The constant is a baseline of the start state. Policy invariance needs a potential of 0 at the end
of an episode (Grześ, 2017), not at its start.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.theory.process import (
    build,
    discounts,
    handed_over_credit,
    make_process,
    make_reward_model,
    names,
    prompt_scores,
    random_logits,
    reward_to_go_gradient,
    shaped_rewards,
    singly_handed_over_credit,
    singly_shaped_rewards,
    sparse_rewards,
)
from tests.theory.test_causal_shaping import CAUSAL, causal_potentials, noise
from textgym.credit import AttentionCredit, PrefixScoreCredit, ShapingCredit
from textgym.credit.potentials import FunctionPotential
from textgym.exact import (
    expected_return,
    optimal_actions,
    policy_gradient,
    policy_probabilities,
    returns_to_go,
    trajectory_probabilities,
)


def start_potentials(process, potential):
    """Φ of each trajectory's prompt, computed without the potential, shape (num_trajectories,)."""
    if isinstance(potential, FunctionPotential):
        ids = process.completions.input_ids
        prompts = zip(ids, process.completions.prompt_mask, strict=True)
        return np.array([noise(row[mask], row[:0]) for row, mask in prompts])
    if potential is CAUSAL["noise, not 0 at the start"]:  # it does not tell, so it counts as 0
        return np.zeros(len(process.starts))
    if potential is CAUSAL["reference value"]:
        constant, of_score, of_start = potential.coefficients[0].tolist()
        return (1 + of_score + of_start) * prompt_scores(process) + constant
    return prompt_scores(process)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("name", names())
def test_the_discounted_credit_of_every_method_sums_to_the_score_minus_the_prompts(
    process, word_policy, name, gamma
):
    credit = process.rewards(build(name, word_policy, gamma=gamma, start="prompt"))
    scores = (sparse_rewards(process) * discounts(gamma)).sum(1)
    expected = scores - prompt_scores(process)
    np.testing.assert_allclose((credit * discounts(gamma)).sum(1), expected, atol=1e-5)
    assert np.abs(prompt_scores(process)).min() > 0.05


@pytest.mark.parametrize("name", names())
def test_the_value_of_every_policy_falls_by_the_same_number(process, word_policy, name):
    credit = process.rewards(build(name, word_policy, start="prompt"))
    sparse = sparse_rewards(process)
    first = [np.flatnonzero(process.starts == start)[0] for start in set(process.starts)]
    mean = prompt_scores(process)[first].mean()  # over the prompts, which are equally likely
    for seed in range(4):
        logits = 3 * random_logits(process, seed)
        value = expected_return(process.trajectories, logits, credit)
        expected = expected_return(process.trajectories, logits, sparse) - mean
        assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", names())
def test_wrappers_hand_over_credit_that_is_measured_from_the_prompt(process, word_policy, name):
    assigner = build(name, word_policy, gamma=0.9, start="prompt")
    expected = process.rewards(assigner)
    np.testing.assert_allclose(handed_over_credit(process, assigner), expected, atol=1e-5)
    rows = range(0, len(expected), 61)
    credit = singly_handed_over_credit(process, assigner, rows)
    np.testing.assert_allclose(credit, expected[rows], atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@causal_potentials
def test_paid_shaping_lowers_returns_by_the_start_value_and_keeps_the_optimal_actions(
    process, potential, gamma
):
    sparse = sparse_rewards(process)
    paid = shaped_rewards(process, potential, -3.0, gamma, start="prompt")
    from_one_forward = process.rewards(ShapingCredit(potential, -3.0, gamma, start="prompt"))
    np.testing.assert_allclose(paid, from_one_forward, atol=1e-5)
    difference = ((paid - sparse) * discounts(gamma)).sum(1)
    np.testing.assert_allclose(difference, 3.0 * start_potentials(process, potential), atol=1e-5)
    np.testing.assert_array_equal(
        optimal_actions(process.trajectories, paid, gamma),
        optimal_actions(process.trajectories, sparse, gamma),
    )


@causal_potentials
def test_the_single_environment_is_paid_the_same(process, potential):
    rows = range(0, len(process.starts), 29)
    paid = singly_shaped_rewards(process, potential, -2.0, 0.9, rows, start="prompt")
    expected = process.rewards(ShapingCredit(potential, -2.0, 0.9, start="prompt"))[rows]
    np.testing.assert_allclose(paid, expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@causal_potentials
def test_shaping_leaves_the_policy_gradient_though_no_critic_knows_the_start_value(
    process, potential, gamma
):
    shaped = process.rewards(ShapingCredit(potential, -2.0, gamma, start="prompt"))
    for seed in range(3):
        logits = random_logits(process, seed)
        np.testing.assert_allclose(
            reward_to_go_gradient(process, logits, shaped, gamma),
            reward_to_go_gradient(process, logits, sparse_rewards(process), gamma),
            atol=1e-5,
        )


def test_measured_from_the_prompt_attention_credit_does_not_depend_on_the_scores_zero(
    process, word_tokenizer
):
    """With ``start="zero"`` it does: see test_hindsight_credit.py."""
    moved = make_process(make_reward_model(word_tokenizer, score_mean=-3.0))
    assigner = AttentionCredit(start="prompt")
    np.testing.assert_allclose(moved.rewards(assigner), process.rewards(assigner), atol=1e-5)
    assert np.abs(sparse_rewards(moved) - sparse_rewards(process)).max() > 2.9


def gradient_variance(process, logits, rewards):
    """Exact variance of the gradient of one trajectory, Σ_t G_t ∇log π(a_t|s_t), no critic."""
    returns = returns_to_go(rewards, process.mask)
    listed = process.trajectories
    taken = np.eye(listed.num_actions)[listed.actions]
    score_function = taken - policy_probabilities(listed, logits)[listed.states]
    # The steps of a trajectory are in different states, so their gradients are orthogonal.
    squares = returns**2 * (score_function**2).sum(2) * process.mask
    mean = policy_gradient(listed, logits, returns * process.mask)
    return trajectory_probabilities(listed, logits) @ squares.sum(1) - (mean**2).sum()


@pytest.mark.parametrize("seed", range(4))
def test_prefix_score_shaping_has_less_gradient_variance_without_the_prompts_score(
    word_tokenizer, seed
):
    """A finding for these reward models, not a theorem: a start value is a baseline like others."""
    process = make_process(make_reward_model(word_tokenizer, seed))
    lump, none = (process.rewards(PrefixScoreCredit(start=start)) for start in ("zero", "prompt"))
    for policy in range(3):
        logits = random_logits(process, policy)
        assert gradient_variance(process, logits, none) < gradient_variance(process, logits, lump)
