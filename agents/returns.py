"""Rewards to go, and what the other completions got from there: advantages without a critic."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mean_of_others", "returns_to_go"]


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """The discounted reward from each step to the end, G_t = Σ_{k≥t} γ^(k−t) r_k.

    Args:
        rewards: (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps), True from the first to the last token of each row.
        gamma: Discount.

    Returns:
        (num_episodes, num_steps), 0 outside the mask.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> returns_to_go(torch.tensor([[1.0, 4.0, 9.0]]), mask, gamma=0.5)
        tensor([[3., 4., 0.]])
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    result = torch.zeros_like(rewards)
    following = rewards.new_zeros(len(rewards))  # (num_episodes,)
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + gamma * following
        result[:, t] = following
    return result


def mean_of_others(to_go: Tensor, mask: Tensor, group_size: int) -> Tensor:
    """The mean reward to go of the other completions of a group, at the same step.

    A completion that has ended before that step counts with the reward to go of its last token. So
    the mean is always over all others; and if the whole reward is paid at the end, it is the
    baseline of RLOO at every step.

    As a baseline it leaves the policy gradient unbiased: what the others did does not depend on the
    tokens of the completion that it judges (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a
    Baseline for Free!").

    Args:
        to_go: (num_groups · group_size, num_steps), the members of a group one after the other.
        mask: bool, same shape, True from the first to the last token of each row.
        group_size: At least 2.

    Returns:
        Same shape, 0 outside the mask.

    Example:
        >>> to_go = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 0.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> mean_of_others(to_go, mask, group_size=2)
        tensor([[5., 6., 6.],
                [1., 2., 0.]])
    """
    steps = torch.arange(to_go.shape[1], device=to_go.device)
    last = mask.sum(dim=1, keepdim=True) - 1
    carried_on = to_go.gather(1, torch.minimum(steps, last))  # (num_episodes, num_steps)
    groups = carried_on.view(-1, group_size, to_go.shape[1])
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return others.view_as(to_go).masked_fill(~mask, 0.0)
