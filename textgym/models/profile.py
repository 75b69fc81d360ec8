"""Profiles: how attention spreads over the relative position in a completion.

A profile lists the shares of equal parts of a completion, first to last. The share of a token is
spread evenly over the token's own part: the third of four tokens covers 1/2 to 3/4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["mean_profile", "stretch_profile"]


def mean_profile(weights: Tensor, completion_mask: Tensor, num_bins: int = 16) -> list[float]:
    """Average profile of completions of any lengths.

    Args:
        weights: Non-negative weights, shape (batch, num_tokens). Completions whose weights are all
            0 are left out.
        completion_mask: True at the completion tokens, shape (batch, num_tokens), bool.
        num_bins: Number of parts.

    Returns:
        Shares that sum to 1.

    >>> mean_profile(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]), num_bins=4)
    [0.125, 0.125, 0.375, 0.375]
    """
    grid = np.linspace(0.0, 1.0, num_bins + 1)
    cumulative = np.zeros(num_bins + 1)
    for row, mask in zip(weights.double().cpu(), completion_mask.cpu(), strict=True):
        total = np.append(0.0, row[mask].cumsum(0).numpy())
        if total[-1] > 0:
            ends = np.linspace(0.0, 1.0, len(total))
            cumulative += np.interp(grid, ends, total / total[-1])
    return (np.diff(cumulative) / cumulative[-1]).tolist()


def stretch_profile(profile: Sequence[float], num_tokens: int) -> Tensor:
    """Share of each token of a completion, according to a profile.

    Args:
        profile: Non-negative shares of equal parts, first to last.
        num_tokens: Number of tokens of the completion.

    Returns:
        float32, shape (num_tokens,).

    >>> stretch_profile([0.25, 0.75], 4)
    tensor([0.1250, 0.1250, 0.3750, 0.3750])
    """
    grid = np.linspace(0.0, 1.0, len(profile) + 1)
    cumulative = np.append(0.0, np.cumsum(profile))
    ends = np.linspace(0.0, 1.0, num_tokens + 1)
    return torch.from_numpy(np.diff(np.interp(ends, grid, cumulative)).astype(np.float32))
