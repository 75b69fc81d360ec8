from __future__ import annotations

import pytest
import torch

from textgym.agents.returns import mean_of_others, returns_to_go
from textgym.agents.rloo import leave_one_out_advantages

LENGTHS = [5, 1, 3, 2]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def ragged(seed: int) -> torch.Tensor:
    """Numbers inside the mask, rubbish outside."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.masked_fill(~MASK, 1e6)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_equal_a_plain_sum(gamma: float) -> None:
    rewards = ragged(0)
    to_go = returns_to_go(rewards, MASK, gamma)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected = sum(gamma ** (k - t) * rewards[row, k].item() for k in range(t, length))
            assert to_go[row, t].item() == pytest.approx(expected)
    assert (to_go[~MASK] == 0).all()


@pytest.mark.parametrize("group_size", [2, 4])
def test_the_others_count_at_the_same_step_or_at_their_last(group_size: int) -> None:
    to_go = ragged(1)
    means = mean_of_others(to_go, MASK, group_size)
    for row, length in enumerate(LENGTHS):
        first = row - row % group_size
        others = [i for i in range(first, first + group_size) if i != row]
        for t in range(length):
            expected = sum(to_go[i, min(t, LENGTHS[i] - 1)].item() for i in others) / len(others)
            assert means[row, t].item() == pytest.approx(expected)
    assert (means[~MASK] == 0).all()


def test_a_reward_at_the_end_gives_every_token_the_advantage_of_rloo() -> None:
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0])
    is_last = torch.arange(5) == torch.tensor(LENGTHS)[:, None] - 1
    to_go = returns_to_go(scores[:, None] * is_last, MASK)
    advantages = to_go - mean_of_others(to_go, MASK, 4)
    expected = leave_one_out_advantages(scores, 4)[:, None] * MASK
    torch.testing.assert_close(advantages, expected)
