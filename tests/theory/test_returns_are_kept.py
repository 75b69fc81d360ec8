"""Return equivalence: every method keeps the return of every trajectory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.theory.process import (
    build,
    discounts,
    handed_over_credit,
    names,
    random_logits,
    reward_to_go_gradient,
    singly_handed_over_credit,
    sparse_rewards,
)
from textgym.credit import CREDIT_ASSIGNERS
from textgym.exact import expected_return, is_causal, policy_gradient


def leave_one_out(totals):
    """RLOO: each total minus the mean of the others in its group, shape (num_groups, size)."""
    others = (totals.sum(1, keepdims=True) - totals) / (totals.shape[1] - 1)
    return totals - others


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("name", names())
def test_discounted_credit_sums_to_the_discounted_score(process, word_policy, name, gamma):
    credit = process.rewards(build(name, word_policy, gamma=gamma))
    expected = (sparse_rewards(process) * discounts(gamma)).sum(1)
    np.testing.assert_allclose((credit * discounts(gamma)).sum(1), expected, atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_values_of_policies_and_so_their_ranking_are_kept(process, word_policy, name):
    credit, sparse = process.rewards(build(name, word_policy)), sparse_rewards(process)
    logits = [3 * random_logits(process, seed) for seed in range(8)]
    values = [expected_return(process.trajectories, one, credit) for one in logits]
    expected = [expected_return(process.trajectories, one, sparse) for one in logits]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert np.diff(np.sort(expected)).min() > 1e-3
    assert (np.argsort(values) == np.argsort(expected)).all()


@pytest.mark.parametrize("name", names())
def test_wrappers_hand_over_the_credit_of_the_whole_batch(process, word_policy, name):
    """Episodes end at different steps, so the wrappers score them in different batches."""
    assigner = build(name, word_policy, gamma=0.9)
    expected = process.rewards(assigner)
    np.testing.assert_allclose(handed_over_credit(process, assigner), expected, atol=1e-5)
    rows = range(0, len(expected), 31)
    credit = singly_handed_over_credit(process, assigner, rows)
    np.testing.assert_allclose(credit, expected[rows], atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_leave_one_out_advantages_of_episode_sums_know_no_redistribution(
    process, word_policy, name
):
    credit = handed_over_credit(process, build(name, word_policy))
    rng = np.random.default_rng(0)
    num_starts = process.starts.max() + 1
    groups = np.stack(  # five groups of four completions of one prompt
        [rng.choice(np.flatnonzero(process.starts == i % num_starts), 4) for i in range(5)]
    )
    np.testing.assert_allclose(
        leave_one_out(credit.sum(1)[groups]),
        leave_one_out(sparse_rewards(process).sum(1)[groups]),
        atol=1e-5,
    )
    if name != "sparse":
        assert np.abs(credit - sparse_rewards(process)).max() > 1e-2


@pytest.mark.parametrize("name", names())
def test_whole_returns_in_place_of_what_is_left_give_the_gradient_of_sparse_reward(
    process, word_policy, name
):
    credit = process.rewards(build(name, word_policy))
    for seed in range(3):
        logits = random_logits(process, seed)
        whole = np.broadcast_to(credit.sum(1, keepdims=True), credit.shape)
        np.testing.assert_allclose(
            policy_gradient(process.trajectories, logits, whole),
            reward_to_go_gradient(process, logits, sparse_rewards(process)),
            atol=1e-6,
        )


@pytest.mark.parametrize("name", names())
def test_methods_that_declare_to_be_causal_are_and_the_others_are_not(process, word_policy, name):
    credit = process.rewards(build(name, word_policy))
    assert is_causal(process.trajectories, credit) == CREDIT_ASSIGNERS[name].causal
