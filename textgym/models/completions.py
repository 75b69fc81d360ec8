"""Batches of completions, before and after the reward model has read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models.readouts import Readout

if TYPE_CHECKING:
    from textgym.models.reward_model import RewardModel

__all__ = ["Completions", "LeftAligned", "ScoredCompletions"]


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

    def to(self, device: str | torch.device) -> Completions:
        """The same texts, without read-outs, on a device."""
        return Completions(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.completion_mask.to(device),
        )

    def select(self, rows: Tensor | slice) -> Self:
        """The same kind of batch with only these rows."""
        chosen: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                value = value[rows]
            elif isinstance(value, Mapping):
                value = {readout: values[rows] for readout, values in value.items()}
            chosen[one.name] = value
        return type(self)(**chosen)


@dataclass(frozen=True)
class LeftAligned:
    """Texts moved to the left end, without the columns that none of them uses.

    Padding then follows every text, whatever side it was on, and a token that is masked in the
    middle of a text is gone from it.

    Attributes:
        input_ids: Shape (batch, longest text), int64.
        attention_mask: Shape (batch, longest text), bool.
        order: Where each column came from, shape (batch, longest text), int64.
        num_tokens: Number of columns before.
    """

    input_ids: Tensor
    attention_mask: Tensor
    order: Tensor
    num_tokens: int

    @classmethod
    def of(cls, completions: Completions) -> LeftAligned:
        """Move the tokens that the attention mask names, in their order."""
        # A stable sort of the mask lists the tokens of a row first.
        order = (~completions.attention_mask).long().argsort(dim=1, stable=True)
        mask = completions.attention_mask.gather(1, order)
        longest = int(mask.sum(1).max())
        order, mask = order[:, :longest], mask[:, :longest]
        ids = completions.input_ids.gather(1, order)
        return cls(ids, mask, order, completions.input_ids.shape[1])

    def restore(self, values: Tensor) -> Tensor:
        """Put values per token back where their tokens came from.

        Args:
            values: Shape (batch, longest text).

        Returns:
            Shape (batch, num_tokens), 0 at padding.
        """
        result = values.new_zeros((len(values), self.num_tokens))
        return result.scatter(1, self.order, values.masked_fill(~self.attention_mask, 0.0))

    def restore_map(self, values: Tensor) -> Tensor:
        """Put values per pair of tokens back where their tokens came from.

        Args:
            values: Shape (batch, ..., longest text, longest text).

        Returns:
            Shape (batch, ..., num_tokens, num_tokens), 0 where either token is padding.
        """
        mask = self.attention_mask
        shape = (*values.shape[:-2], self.num_tokens, self.num_tokens)
        result = values.new_zeros(shape).movedim(0, -3)  # (..., batch, num_tokens, num_tokens)
        rows = torch.arange(len(mask), device=mask.device)[:, None, None]
        valid = values.movedim(0, -3) * mask[:, :, None] * mask[:, None, :]
        result[..., rows, self.order[:, :, None], self.order[:, None, :]] = valid
        return result.movedim(-3, 0)


@dataclass(frozen=True)
class ScoredCompletions(Completions):
    """Completions with what the reward model read out of them, in the layout of its input.

    ``scored[PrefixScores()]`` gives a read-out that was asked for: float32, 0 at padding, of the
    shape that the class of the read-out tells.

    Attributes:
        score: Score of each text, shape (batch,), float32.
        readouts: The read-outs by what was asked for; see :mod:`textgym.models.readouts`.
        reward_model: Who scored, for methods that have further texts scored; None in batches that
            were put together by hand.
    """

    score: Tensor
    readouts: Mapping[Readout, Tensor] = field(default_factory=dict)
    reward_model: RewardModel | None = None

    def __getitem__(self, readout: Readout) -> Tensor:
        if readout not in self.readouts:
            raise InvalidArgumentError(
                "readout",
                readout,
                "was not asked for when the completions were scored: name it in "
                "reward_model.read(..., readouts) or in the assigner's attribute readouts",
            )
        return self.readouts[readout]
