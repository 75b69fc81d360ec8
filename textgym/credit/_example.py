"""The completion of five tokens that the documentation of the assigners works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from textgym.models import Completions, Readout, ScoredCompletions

__all__ = ["five_tokens"]


def five_tokens(
    readouts: dict[Readout, Sequence[Any]] | None = None, reward_model: Any = None
) -> ScoredCompletions:
    """A prompt of two tokens and a completion of five, token ids 1 to 7, with score 2.

    Args:
        readouts: Read-outs over the seven tokens, as nested lists.
        reward_model: Who scores further texts; ``read`` of this object is not called here.

    Returns:
        A batch of one.
    """
    batch = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
    scored = ScoredCompletions(
        batch.input_ids,
        batch.attention_mask,
        batch.completion_mask,
        score=torch.tensor([2.0]),
        reward_model=reward_model,
    )
    tensors = {readout: torch.tensor([values]) for readout, values in (readouts or {}).items()}
    return replace(scored, readouts=tensors)
