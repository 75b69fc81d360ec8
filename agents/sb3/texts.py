"""The texts in a batch of observations: where they are, and which of them begin others."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["left_padded", "longest_texts"]


def left_padded(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding to the left, and drop columns that are padding in every row.

    Example:
        >>> ids = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]])
        >>> [x.int().tolist() for x in left_padded(ids, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]))]
        [[[0, 5, 6], [7, 8, 9]], [[0, 1, 1], [1, 1, 1]]]

    Args:
        input_ids: int64 (batch, max_length).
        attention_mask: 1 at tokens, (batch, max_length).

    Returns:
        Ids int64 and mask bool, both (batch, length of the longest text).
    """
    mask, order = attention_mask.bool().sort(dim=1, stable=True)  # False comes before True
    length = int(mask.sum(dim=1).max())
    return input_ids.gather(1, order)[:, -length:], mask[:, -length:]


def longest_texts(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The texts that no other text begins with, and for every text one of these that it begins.

    A causal model that reads these has read them all: the states of an episode begin its last one.

    Example:
        >>> ids = torch.tensor([[0, 5, 6], [0, 7, 8], [5, 6, 9], [0, 0, 5]])
        >>> longest, inside = longest_texts(ids, ids > 0)
        >>> longest.tolist(), inside.tolist()
        ([1, 2], [1, 0, 1, 1])

    Args:
        input_ids: int64 (batch, num_tokens).
        attention_mask: True at tokens, (batch, num_tokens), padded on any side.

    Returns:
        The rows of the longest texts, int64 (num_longest,); and for each row, which of them it
        begins, int64 (batch,), an index into the first.
    """
    rows = zip(input_ids.cpu().numpy(), attention_mask.bool().cpu().numpy(), strict=True)
    texts = [ids[mask].tobytes() for ids, mask in rows]
    # In alphabetical order, a text stands right before those that it begins.
    longest: list[int] = []
    inside = [0] * len(texts)
    for row in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if not longest or not texts[longest[-1]].startswith(texts[row]):
            longest.append(row)
        inside[row] = len(longest) - 1
    device = input_ids.device
    return torch.tensor(longest, device=device), torch.tensor(inside, device=device)
