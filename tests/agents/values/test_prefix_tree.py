"""Values from the tree of prefixes: a plain loop, exact gradients, exact values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from textgym.agents.rloo import leave_one_out_advantages
from textgym.agents.values import prefix_tree_values
from textgym.errors import InvalidArgumentError
from textgym.exact import (
    Trajectories,
    policy_gradient,
    state_values,
    trajectory_probabilities,
)

END = 2
TEXTS = [
    text
    for length in (1, 2, 3)
    for text in itertools.product((0, 1, END), repeat=length)
    if END not in text[:-1] and (length == 3 or text[-1] == END)
]


@pytest.fixture(scope="module")
def process():
    """All texts of up to three tokens, a policy for them, and their probabilities and scores."""
    trajectories = Trajectories.of_texts(TEXTS)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(trajectories.num_states, trajectories.num_actions))
    probabilities = trajectory_probabilities(trajectories, logits)
    return trajectories, logits, probabilities, rng.normal(size=len(TEXTS))


def values_of(trajectories, scores, members, group_size):
    """Values of groups that consist of some of the texts, given by number."""
    return prefix_tree_values(
        torch.from_numpy(trajectories.actions[members]),
        torch.from_numpy(trajectories.mask[members]),
        torch.from_numpy(scores[members]),
        group_size,
    )


@pytest.mark.parametrize("group_size", [2, 5])
def test_values_equal_a_plain_loop(process, group_size) -> None:
    trajectories, _, probabilities, scores = process
    members = np.random.default_rng(1).choice(len(TEXTS), 6 * group_size, p=probabilities)
    values = values_of(trajectories, scores, members, group_size)
    num_alone = 0
    for i, member in enumerate(members):
        first = i - i % group_size
        others = [j for j in range(first, first + group_size) if j != i]
        for t in range(3):
            if t >= len(TEXTS[member]):
                assert values[i, t] == 0
                continue
            prefix = TEXTS[member][:t]
            sharing = []
            while not sharing:  # shorten the prefix until another completion has it
                sharing = [
                    scores[members[j]]
                    for j in others
                    if TEXTS[members[j]][: len(prefix)] == prefix
                    and len(TEXTS[members[j]]) > len(prefix)
                ]
                num_alone += not sharing
                prefix = prefix[:-1]
            assert values[i, t].item() == pytest.approx(np.mean(sharing), abs=1e-6)
    assert num_alone > 0


def test_at_the_first_token_it_is_the_advantage_of_rloo(process) -> None:
    trajectories, _, _, scores = process
    members = np.arange(12)
    values = values_of(trajectories, scores, members, group_size=4)
    advantages = torch.from_numpy(scores[members]).float() - values[:, 0]
    expected = leave_one_out_advantages(torch.from_numpy(scores[members]).float(), 4)
    torch.testing.assert_close(advantages, expected)


@pytest.mark.parametrize("group_size", [2, 3])
def test_score_minus_value_leaves_the_policy_gradient(process, group_size) -> None:
    """The mean over all groups that can be sampled, weighted by their probability."""
    trajectories, logits, probabilities, scores = process
    groups = np.array(list(itertools.product(range(len(TEXTS)), repeat=group_size)))
    values = values_of(trajectories, scores, groups.flatten(), group_size)
    first = values.view(len(groups), group_size, -1)[:, 0].double().numpy()
    weights = probabilities[groups[:, 1:]].prod(axis=1)
    baseline = np.zeros(trajectories.mask.shape)
    np.add.at(baseline, groups[:, 0], weights[:, None] * first)
    returns = np.broadcast_to(scores[:, None], baseline.shape)
    expected = policy_gradient(trajectories, logits, returns)
    gradient = policy_gradient(trajectories, logits, returns - baseline)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    assert np.abs(baseline).max() > 0.1


def test_many_completions_give_the_exact_values(process) -> None:
    trajectories, logits, probabilities, scores = process
    members = np.random.default_rng(2).choice(len(TEXTS), 1500, p=probabilities)
    values = values_of(trajectories, scores, members, group_size=1500).numpy()
    returns = np.broadcast_to(scores[:, None], trajectories.mask.shape)
    mean = state_values(trajectories, logits, returns)
    variance = state_values(trajectories, logits, returns**2) - mean**2
    states, mask = trajectories.states[members], trajectories.mask[members]
    visits = np.bincount(states[mask], minlength=trajectories.num_states)
    error = np.abs(values - mean[states])[mask]
    band = 5 * np.sqrt(variance / (visits - 1).clip(1))[states][mask]
    assert (error < band).all()
    assert band.max() < 1
    assert mean.std() > 0.2


@pytest.mark.parametrize("group_size", [0, 1, 5])
def test_groups_must_have_others_and_divide_the_episodes(process, group_size) -> None:
    trajectories, _, _, scores = process
    with pytest.raises(InvalidArgumentError, match="group_size"):
        values_of(trajectories, scores, np.arange(12), group_size)


def test_a_completion_that_was_cut_off_says_nothing_about_the_state_it_never_acted_in() -> None:
    ids = torch.tensor([[5, 6], [5, 7], [5, 0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    values = prefix_tree_values(ids, mask, torch.tensor([1.0, 3.0, 8.0]), group_size=3)
    assert values[:, 1].tolist() == [3, 1, 0]
