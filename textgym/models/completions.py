"""Batches of completions, before and after the reward model has read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError

__all__ = ["Completions", "ScoredCompletions"]


@dataclass(frozen=True)
class Completions:
    """Prompts with their completions, padded on either side.

    A prompt of two tokens, a completion of three and one token of padding, on the right::

        input_ids        [p0, p1, c0, c1, c2, pad]
        attention_mask   [ 1,  1,  1,  1,  1,   0]
        completion_mask  [ 0,  0,  1,  1,  1,   0]

    Attributes:
        input_ids: Token ids, shape (batch, num_tokens), int64.
        attention_mask: True at the tokens that are not padding, shape (batch, num_tokens), bool.
        completion_mask: True at the generated tokens, shape (batch, num_tokens), bool.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        pad_token_id: int = 0,
        device: str | torch.device = "cpu",
    ) -> Completions:
        """Pad token lists on the right.

        Args:
            prompt_ids: Token ids of each prompt.
            completion_ids: Token ids of each completion; as many as prompts.
            pad_token_id: What stands in the padding; it is masked, so any id will do.
            device: Where the tensors go.

        Raises:
            InvalidArgumentError: If the numbers of prompts and completions differ.
        """
        if len(prompt_ids) != len(completion_ids):
            raise InvalidArgumentError(
                "completion_ids",
                len(completion_ids),
                f"there must be one completion per prompt, and there are {len(prompt_ids)} prompts",
            )
        lengths = [len(p) + len(c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        shape = (len(lengths), max(lengths, default=0))
        input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.bool)
        completion_mask = torch.zeros(shape, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            end = lengths[row]
            input_ids[row, :end] = torch.as_tensor([*prompt, *completion], dtype=torch.int64)
            attention_mask[row, :end] = True
            completion_mask[row, len(prompt) : end] = True
        return cls(input_ids.to(device), attention_mask.to(device), completion_mask.to(device))

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt_mask(self) -> Tensor:
        """True at the tokens of the prompt, shape (batch, num_tokens), bool."""
        return self.attention_mask & ~self.completion_mask

    def select(self, rows: Tensor | slice) -> Self:
        """The same kind of batch with only these rows."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            chosen[field.name] = None if value is None else value[rows]
        return type(self)(**chosen)


@dataclass(frozen=True)
class ScoredCompletions(Completions):
    """Completions with what the reward model read out of them, in the layout of its input.

    Attributes:
        score: Score of each text, shape (batch,), float32.
        prefix_scores: Score of the text that ends at each token, shape (batch, num_tokens),
            float32, 0 at padding; None unless it was asked for.
        attention: Attention that the position from which the score is read pays to every token,
            last layer, mean over heads, shape (batch, num_tokens), float32, 0 at padding; a row
            sums to 1, prompt included. None unless it was asked for.
        attention_map: The same for every position, shape (batch, num_tokens, num_tokens),
            indexed [row, position that attends, position attended to], float32, 0 where either is
            padding; None unless it was asked for.
    """

    score: Tensor
    prefix_scores: Tensor | None = None
    attention: Tensor | None = None
    attention_map: Tensor | None = None
