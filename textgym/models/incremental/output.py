"""What a decoder says when it reads tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from textgym.models.recorder import RecordedAttention

__all__ = ["Output"]


class Output(NamedTuple):
    """Outputs of one forward pass over some tokens of each text.

    Attributes:
        hidden: Hidden states after the last norm, shape (rows, num_tokens, hidden_size).
        logits: Of the columns that were asked for, shape (rows, num_columns, vocab); None without
            a language-model head.
        attention: The recorded attention; None if it was not recorded.
    """

    hidden: Tensor
    logits: Tensor | None = None
    attention: RecordedAttention | None = None
