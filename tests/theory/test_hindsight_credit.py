"""Hindsight credit keeps returns, but not the reward to go, and so it changes the gradient.

Chan et al. (2024, arXiv 2402.00782) call it equivalent to potential-based shaping. But its
potential would depend on tokens that do not exist yet.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.theory.process import (
    build,
    discounts,
    make_process,
    make_reward_model,
    names,
    per_step,
    random_logits,
    reward_to_go_gradient,
    sparse_rewards,
)
from textgym.credit import AttentionCredit, ShapingCredit, SparseCredit, UniformCredit
from textgym.credit.potentials import PrefixScore
from textgym.exact import (
    Trajectories,
    cosine,
    expected_return,
    policy_gradient,
    returns_to_go,
    state_values,
)
from textgym.models import AttentionRow, Completions

A, B = 0, 1


def two_texts(texts, scores, attention):
    """Texts after a prompt of one token, their scores, and the attention to all their tokens."""
    batch = Completions.from_lists([[3]] * len(texts), texts)
    row = torch.zeros(batch.input_ids.shape)
    row[batch.completion_mask] = torch.tensor(attention)
    return batch.with_score(scores, {AttentionRow(): row})


def discounted(assigner, scored, gamma):
    """Discounted sum of the credit of each text, shape (batch,)."""
    credit = per_step(assigner(scored), scored.completion_mask)
    return (credit * discounts(gamma)).sum(1)


@pytest.mark.parametrize("name", names(causal=False))
def test_rewards_to_go_of_hindsight_credit_give_another_gradient(process, word_policy, name):
    credit, sparse = process.rewards(build(name, word_policy)), sparse_rewards(process)
    for seed in range(4):
        logits = random_logits(process, seed)
        gradient = reward_to_go_gradient(process, logits, credit)
        expected = reward_to_go_gradient(process, logits, sparse)
        assert cosine(gradient, expected) < 1 - 1e-4
        assert np.abs(gradient - expected).max() > 1e-3


def test_attention_credit_turns_the_gradient_the_further_the_more_it_redistributes(process):
    sparse, logits = sparse_rewards(process), random_logits(process, 0)
    expected = reward_to_go_gradient(process, logits, sparse)
    cosines = [
        cosine(
            reward_to_go_gradient(process, logits, process.rewards(AttentionCredit(beta))), expected
        )
        for beta in (0.0, 0.3, 0.6, 0.9)
    ]
    assert cosines[0] == pytest.approx(1, abs=1e-9)
    assert (np.diff(cosines) < -0.003).all()


def test_greedy_improvement_on_what_is_left_takes_the_worse_action():
    """The last step chooses A (score 1, attention (.9, .1)) or B (score .5, attention (.1, .9)).

    The reward to go is then 1 - .9β for A and .5 - .05β for B. Beyond β = .5/.85 = .588 an agent
    that maximises it takes B, although A is the better text by the return of either reward.
    """
    scored = two_texts([[A, A], [A, B]], [1.0, 0.5], [0.9, 0.1, 0.1, 0.9])
    texts = Trajectories.of_texts([[A, A], [A, B]])
    last = texts.states[0, 1]
    indifferent, threshold = np.zeros((texts.num_states, 2)), 0.5 / 0.85
    for beta, choice in ((threshold - 0.01, A), (threshold + 0.01, B)):
        credit = per_step(AttentionCredit(beta)(scored), scored.completion_mask)[:, :2]
        left = returns_to_go(credit, texts.mask)[:, 1]
        np.testing.assert_allclose(left, [1 - 0.9 * beta, 0.5 - 0.05 * beta], rtol=1e-5)
        assert left.argmax() == choice
        gradient = policy_gradient(texts, indifferent, returns_to_go(credit, texts.mask))
        assert gradient[last].argmax() == choice
        takes_a, takes_b = np.array([[0.0, 0.0], [40.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 40.0]])
        values = [expected_return(texts, logits, credit) for logits in (takes_a, takes_b)]
        np.testing.assert_allclose(values, [1.0, 0.5], atol=1e-6)
    sparse = per_step(SparseCredit()(scored), scored.completion_mask)[:, :2]
    assert returns_to_go(sparse, texts.mask)[:, 1].argmax() == A


def test_a_constant_in_the_score_turns_the_gradient_of_attention_credit_alone(
    process, word_tokenizer
):
    moved = make_process(make_reward_model(word_tokenizer, score_mean=-3.0))
    np.testing.assert_allclose(
        sparse_rewards(moved).sum(1), sparse_rewards(process).sum(1) + 3, atol=1e-5
    )
    for seed in range(4):
        logits = random_logits(process, seed)

        def gradients(assigner, logits=logits):
            return [
                reward_to_go_gradient(one, logits, one.rewards(assigner))
                for one in (process, moved)
            ]

        for causal in (SparseCredit(), ShapingCredit(), ShapingCredit(PrefixScore(), beta=-2)):
            np.testing.assert_allclose(*gradients(causal), atol=1e-5)
        assert cosine(*gradients(AttentionCredit())) < 0.98


@pytest.mark.parametrize("assigner", [SparseCredit(), AttentionCredit(), ShapingCredit()])
def test_a_baseline_of_the_state_changes_no_expected_gradient(process, assigner):
    """So a baseline cannot undo what a constant in the score does to hindsight credit."""
    logits = random_logits(process, 0)
    returns = returns_to_go(process.rewards(assigner), process.mask)
    baseline = state_values(process.trajectories, logits, returns)[process.trajectories.states]
    assert np.abs(baseline[process.mask]).mean() > 0.05
    np.testing.assert_allclose(
        policy_gradient(process.trajectories, logits, returns - baseline),
        policy_gradient(process.trajectories, logits, returns),
        atol=1e-12,
    )


def test_without_its_discount_attention_credit_prefers_early_attention():
    """A scores 1 and its end gets the attention; B scores .95 and its beginning gets it.

    Both have two tokens, so a discount of .8 must not make B the better text.
    """
    scored = two_texts([[A, A], [A, B]], [1.0, 0.95], [0.1, 0.9, 0.9, 0.1])
    np.testing.assert_allclose(
        discounted(AttentionCredit(beta=1.0, gamma=0.8), scored, 0.8), [0.8, 0.76], rtol=1e-5
    )
    np.testing.assert_allclose(
        discounted(AttentionCredit(beta=1.0, gamma=1.0), scored, 0.8), [0.82, 0.931], rtol=1e-5
    )


def test_without_its_discount_uniform_credit_prefers_longer_texts():
    """Two tokens score 1 and three tokens score 1.1: at γ = .9 the shorter text is worth more."""
    scored = two_texts([[A, A], [A, B, B]], [1.0, 1.1], [0.5, 0.5, 0.3, 0.3, 0.4])
    np.testing.assert_allclose(
        discounted(UniformCredit(beta=1.0, gamma=0.9), scored, 0.9), [0.9, 0.891], rtol=1e-5
    )
    np.testing.assert_allclose(
        discounted(UniformCredit(beta=1.0, gamma=1.0), scored, 0.9),
        [0.95, 1.1 * 2.71 / 3],
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", names(causal=False))
def test_under_a_discount_every_token_keeps_its_part_of_what_the_score_is_worth_at_the_start(
    process, word_policy, name
):
    """At each token, γ^t credit_t under a discount is γ^(T-1) times the undiscounted credit."""
    scale = 0.9 ** (process.mask.sum(1, keepdims=True) - 1)
    np.testing.assert_allclose(
        process.rewards(build(name, word_policy, gamma=0.9)) * discounts(0.9),
        process.rewards(build(name, word_policy, gamma=1.0)) * scale,
        atol=1e-5,
    )


def best_completions(process, rewards, gamma):
    """The completion with the highest discounted return, for each prompt."""
    value = (rewards * discounts(gamma)).sum(1)
    return [np.where(process.starts == i, value, -np.inf).argmax() for i in set(process.starts)]


@pytest.mark.parametrize("name", names(causal=False))
def test_the_best_completion_under_a_discount_is_kept_by_the_discounted_credit(
    process, word_policy, name
):
    credit = process.rewards(build(name, word_policy, gamma=0.5))
    expected = best_completions(process, sparse_rewards(process), 0.5)
    assert best_completions(process, credit, 0.5) == expected


def test_the_best_completion_under_a_discount_is_lost_by_undiscounted_attention_credit(process):
    credit = process.rewards(AttentionCredit(gamma=1.0))
    expected = best_completions(process, sparse_rewards(process), 0.5)
    assert best_completions(process, credit, 0.5) != expected
