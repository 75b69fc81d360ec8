"""Exact gradients and optima against automatic differentiation and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from textgym.errors import InvalidArgumentError
from textgym.exact import (
    Trajectories,
    action_values,
    expected_return,
    is_causal,
    optimal_actions,
    policy_gradient,
    returns_to_go,
    state_values,
    trajectory_probabilities,
)

GAMMA = 0.7


@pytest.fixture(scope="module")
def process():
    """Texts of up to four of the tokens 0, 1 and 2, from two starts; token 2 ends a text."""
    words = [text for n in range(4) for text in itertools.product((0, 1), repeat=n)]
    texts = [(*text, 2) for text in words]
    texts += list(itertools.product((0, 1), repeat=4))
    return Trajectories.of_texts(texts * 2, [0] * len(texts) + [5] * len(texts))


@pytest.fixture(scope="module")
def case(process):
    """A policy, causal rewards and rewards that look ahead."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(process.num_states, process.num_actions))
    causal = rng.normal(size=logits.shape)[process.states, process.actions] * process.mask
    return logits, causal, rng.normal(size=process.mask.shape) * process.mask


def value_by_torch(process, logits, rewards):
    """Σ_τ p(τ) Σ_t γ^t r_t by a loop over the trajectories."""
    legal = torch.zeros(logits.shape, dtype=torch.bool)
    for states, actions, mask in zip(process.states, process.actions, process.mask, strict=True):
        legal[states[mask], actions[mask]] = True
    logprobs = logits.masked_fill(~legal, -torch.inf).log_softmax(1)
    value = 0.0
    for row, mask in enumerate(process.mask):
        steps = list(zip(process.states[row][mask], process.actions[row][mask], strict=True))
        probability = torch.stack([logprobs[s, a] for s, a in steps]).sum().exp() / 2
        value = value + probability * sum(GAMMA**t * rewards[row, t] for t in range(len(steps)))
    return value


def test_states_are_the_starts_with_the_tokens_so_far(process):
    assert process.num_states == 2 * (1 + 2 + 4 + 8)
    seen = {}
    for row, (states, actions) in enumerate(zip(process.states, process.actions, strict=True)):
        for step in range(process.mask[row].sum()):
            text = (row >= len(process.mask) // 2, *actions[:step])
            assert seen.setdefault(states[step], text) == text
    assert len(set(seen.values())) == len(seen) == process.num_states


def test_trajectories_are_as_likely_as_their_actions(process, case):
    probabilities = trajectory_probabilities(process, case[0])
    assert probabilities.sum() == pytest.approx(1)
    half = len(probabilities) // 2
    assert probabilities[:half].sum() == pytest.approx(0.5)


def test_the_gradient_is_that_of_the_value_if_rewards_are_causal(process, case):
    logits, causal, looks_ahead = case
    for rewards, is_equal in ((causal, True), (looks_ahead, False)):
        assert is_causal(process, rewards) == is_equal
        parameters = torch.tensor(logits, requires_grad=True)
        value = value_by_torch(process, parameters, rewards)
        assert expected_return(process, logits, rewards, GAMMA) == pytest.approx(value.item())
        (expected,) = torch.autograd.grad(value, parameters)
        to_go = returns_to_go(rewards, process.mask, GAMMA) * GAMMA ** np.arange(4)
        gradient = policy_gradient(process, logits, to_go)
        difference = np.abs(gradient - expected.numpy()).max()
        assert difference < 1e-10 if is_equal else difference > 1e-2


def test_whole_returns_give_the_gradient_of_the_value_for_any_rewards(process, case):
    logits, _, looks_ahead = case
    parameters = torch.tensor(logits, requires_grad=True)
    value = value_by_torch(process, parameters, looks_ahead)
    (expected,) = torch.autograd.grad(value, parameters)
    whole = returns_to_go(looks_ahead, process.mask, GAMMA)[:, :1] + np.zeros((1, 4))
    np.testing.assert_allclose(
        policy_gradient(process, logits, whole), expected.numpy(), atol=1e-10
    )


def test_action_values_are_the_best_of_all_that_can_follow(process, case):
    _, causal, _ = case
    to_go = returns_to_go(causal, process.mask, GAMMA)
    expected = np.full((process.num_states, process.num_actions), -np.inf)
    for row, step in np.argwhere(process.mask):
        index = process.states[row, step], process.actions[row, step]
        expected[index] = max(expected[index], to_go[row, step])
    np.testing.assert_allclose(action_values(process, causal, GAMMA), expected)
    best = optimal_actions(process, causal, GAMMA)
    np.testing.assert_array_equal(best.argmax(1), expected.argmax(1))
    assert (best.sum(1) == 1).all()


def test_actions_of_equal_value_are_all_optimal(process):
    assert (optimal_actions(process, np.zeros(process.mask.shape)) == process.legal).all()


def test_values_of_states_satisfy_the_bellman_equation(process, case):
    logits, causal, _ = case
    values = state_values(process, logits, returns_to_go(causal, process.mask, GAMMA))
    following = np.pad(values[process.states] * process.mask, ((0, 0), (0, 1)))[:, 1:]
    one_step = state_values(process, logits, causal + GAMMA * following)
    np.testing.assert_allclose(one_step, values)


def test_what_stands_behind_the_end_is_ignored(process, case):
    logits, causal, _ = case
    with_junk = np.where(process.mask, causal, 1e9)
    assert expected_return(process, logits, with_junk) == expected_return(process, logits, causal)
    np.testing.assert_array_equal(
        policy_gradient(process, logits, with_junk), policy_gradient(process, logits, causal)
    )
    np.testing.assert_array_equal(action_values(process, with_junk), action_values(process, causal))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Trajectories.of_texts([]),
        lambda: Trajectories.of_texts([[0], []]),
        lambda: Trajectories.of_texts([[0], [1]], starts=[0]),
        lambda: Trajectories.of_texts([[0], [2]], num_actions=2),
        lambda: Trajectories(
            np.array([[0, 0]]), np.array([[0, 1]]), np.ones((1, 2), dtype=bool), 1, 2
        ),
    ],
)
def test_what_is_no_process_is_refused(build):
    with pytest.raises(InvalidArgumentError):
        build()


def test_no_action_has_a_value_under_rewards_that_look_ahead(process, case):
    with pytest.raises(InvalidArgumentError, match="depends on later actions"):
        optimal_actions(process, case[2])
