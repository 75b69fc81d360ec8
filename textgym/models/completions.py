"""Batches of completions, before and after a reward model has scored them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models.readouts import Readout

__all__ = ["Completions", "GradientScorer", "LeftAligned", "ScoredCompletions", "Scorer"]


@dataclass(frozen=True)
class Completions:
    """Prompts with their completions, padded on either side.

    A prompt of two tokens and a completion of three, with one token of padding on the right::

        input_ids        [p0, p1, c0, c1, c2, pad]
        attention_mask   [ 1,  1,  1,  1,  1,   0]
        completion_mask  [ 0,  0,  1,  1,  1,   0]

    Attributes:
        input_ids: Token ids, shape (batch, num_tokens), int64.
        attention_mask: True at every token that is not padding, shape (batch, num_tokens), bool.
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
        """Build a batch from token lists, padded on the right.

        Args:
            prompt_ids: Token ids of each prompt.
            completion_ids: Token ids of each completion; as many as prompts.
            pad_token_id: Id to fill the padding with. Padding is masked, so any id will do.
            device: Device of the tensors.

        Raises:
            InvalidArgumentError: If the numbers of prompts and completions differ.

        >>> Completions.from_lists([[5, 6], [7]], [[8], [9]]).input_ids
        tensor([[5, 6, 8],
                [7, 9, 0]])
        """
        if len(prompt_ids) != len(completion_ids):
            raise InvalidArgumentError(
                "completion_ids",
                len(completion_ids),
                f"there must be one completion per prompt, and there are {len(prompt_ids)} prompts",
            )
        texts = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        prompt_lengths = np.array([len(prompt) for prompt in prompt_ids], dtype=np.int64)
        input_ids = np.full((len(texts), lengths.max(initial=0)), pad_token_id, dtype=np.int64)
        for row, text in enumerate(texts):
            input_ids[row, : len(text)] = text
        return cls.from_arrays(input_ids, prompt_lengths, lengths, device)

    @classmethod
    def from_arrays(
        cls,
        input_ids: np.ndarray,
        prompt_lengths: np.ndarray,
        lengths: np.ndarray,
        device: str | torch.device = "cpu",
    ) -> Completions:
        """Build a batch from right-padded arrays, cut to the longest text.

        Args:
            input_ids: Token ids of prompt and completion, shape (batch, width), integer; copied.
            prompt_lengths: Number of tokens of each prompt, shape (batch,), integer.
            lengths: Number of tokens of prompt and completion together, shape (batch,), integer.
            device: Device of the tensors.

        Raises:
            InvalidArgumentError: If the shapes disagree, or a length is out of range.

        >>> ids = np.array([[5, 6, 8, 0], [7, 9, 0, 0]])
        >>> Completions.from_arrays(ids, np.array([2, 1]), np.array([3, 2])).completion_mask
        tensor([[False, False,  True],
                [False,  True, False]])
        """
        shape = (len(input_ids),)
        if input_ids.ndim != 2 or prompt_lengths.shape != shape or lengths.shape != shape:
            raise InvalidArgumentError(
                "input_ids",
                input_ids.shape,
                "must have shape (batch, width), and both lengths shape (batch,); their shapes are "
                f"{prompt_lengths.shape} and {lengths.shape}",
            )
        in_order = (prompt_lengths >= 0) & (prompt_lengths <= lengths)
        if not (in_order & (lengths <= input_ids.shape[1])).all():
            raise InvalidArgumentError(
                "lengths",
                lengths,
                "every row needs 0 <= prompt length <= length <= width, and the width is "
                f"{input_ids.shape[1]}",
            )
        columns = np.arange(lengths.max(initial=0))
        attention_mask = columns < lengths[:, None]  # (batch, num_tokens)
        completion_mask = attention_mask & (columns >= prompt_lengths[:, None])
        return cls(
            torch.tensor(input_ids[:, : len(columns)], dtype=torch.int64, device=device),
            torch.tensor(attention_mask, device=device),
            torch.tensor(completion_mask, device=device),
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt_mask(self) -> Tensor:
        """True at the tokens of the prompt, shape (batch, num_tokens), bool."""
        return self.attention_mask & ~self.completion_mask

    def to(self, device: str | torch.device) -> Completions:
        """The same texts on another device, without scores and read-outs."""
        return Completions(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.completion_mask.to(device),
        )

    def with_score(
        self,
        score: Tensor | Sequence[float],
        readouts: Mapping[Readout, Any] | None = None,
        reward_model: Scorer | None = None,
    ) -> ScoredCompletions:
        """Attach scores and read-outs of your own, for examples, tests and tools.

        Args:
            score: Score of each text, shape (batch,).
            readouts: Values by read-out, as tensors or nested lists, shape (batch, ...).
            reward_model: The model that scores more texts for assigners that need it.

        Raises:
            InvalidArgumentError: If there is not one score, or one row of a read-out, per text.

        >>> scored = Completions.from_lists([[5, 6], [7]], [[8], [9]]).with_score([0.5, -1.0])
        >>> scored.score
        tensor([ 0.5000, -1.0000])
        """
        batch, device = len(self), self.input_ids.device
        scores = torch.as_tensor(score, dtype=torch.float32, device=device)
        if scores.shape != (batch,):
            raise InvalidArgumentError("score", tuple(scores.shape), f"must have shape ({batch},)")
        values = {
            readout: torch.as_tensor(value, dtype=torch.float32, device=device)
            for readout, value in (readouts or {}).items()
        }
        for readout, value in values.items():
            if value.shape[:1] != (batch,):
                raise InvalidArgumentError(
                    "readouts", tuple(value.shape), f"{readout} must have shape ({batch}, ...)"
                )
        return ScoredCompletions(
            self.input_ids, self.attention_mask, self.completion_mask, scores, values, reward_model
        )

    def select(self, rows: Tensor | slice) -> Self:
        """A batch of the same class with only these rows."""
        chosen: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                value = value[rows]
            elif isinstance(value, Completions):
                value = value.select(rows)
            elif isinstance(value, Mapping):
                value = {readout: values[rows] for readout, values in value.items()}
            chosen[one.name] = value
        return type(self)(**chosen)


@dataclass(frozen=True)
class LeftAligned:
    """Texts moved to the left end, without the columns that no text uses.

    Padding then follows every text, whatever side it was on before. Tokens that were masked in the
    middle of a text are gone.

    Attributes:
        input_ids: Token ids, shape (batch, longest text), int64.
        attention_mask: True at the tokens, shape (batch, longest text), bool.
        order: The original column of each column, shape (batch, longest text), int64.
        num_tokens: The original number of columns.
    """

    input_ids: Tensor
    attention_mask: Tensor
    order: Tensor
    num_tokens: int

    @classmethod
    def of(cls, completions: Completions) -> LeftAligned:
        """Move the tokens that the attention mask keeps to the left, in order."""
        # A stable sort of the inverted mask puts the tokens of a row first.
        order = (~completions.attention_mask).long().argsort(dim=1, stable=True)
        mask = completions.attention_mask.gather(1, order)
        longest = int(mask.sum(1).max())
        order, mask = order[:, :longest], mask[:, :longest]
        ids = completions.input_ids.gather(1, order)
        return cls(ids, mask, order, completions.input_ids.shape[1])

    def with_padding(self, token_id: int) -> LeftAligned:
        """The same texts with this token behind them, whatever was there."""
        return replace(self, input_ids=self.input_ids.masked_fill(~self.attention_mask, token_id))

    def restore(self, values: Tensor) -> Tensor:
        """Move one value per token back to the token's original column.

        Args:
            values: Shape (batch, longest text).

        Returns:
            Shape (batch, num_tokens), 0 at padding.
        """
        result = values.new_zeros((len(values), self.num_tokens))
        return result.scatter(1, self.order, values.masked_fill(~self.attention_mask, 0.0))

    def restore_map(self, values: Tensor) -> Tensor:
        """Move one value per pair of tokens back to the tokens' original columns.

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


class Scorer(Protocol):
    """What scores texts: the interface of a reward.

    :class:`textgym.models.RewardModel` provides it, and so does any object of yours with this one
    method. Sparse reward, uniform and random credit, and the methods that score altered texts
    (occlusion, Shapley values) need no more. What else such an object may have:

    - ``check_readouts(readouts)``, to refuse what it does not provide when an environment is
      wrapped instead of when an episode ends.
    - ``max_length``: the longest text in tokens that it takes; without it, any.
    - ``is_causal``: False if a token's prefix score or attention depends on later tokens;
      attention-weighted prefix scores are then refused.
    - ``attention_profile``: how attention spreads over a completion, for position credit; see
      :mod:`textgym.models.profile`.
    """

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Score a batch, and compute read-outs; see :meth:`Completions.with_score`."""


class GradientScorer(Scorer, Protocol):
    """A scorer whose score can be differentiated, as integrated gradients need."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    @property
    def num_embeddings(self) -> int:
        """Number of token ids that can be embedded."""

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens, shape (batch, num_tokens, hidden_size)."""

    def score_embeddings(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Score left-aligned texts given as embeddings, shape (batch,), float32."""


@dataclass(frozen=True)
class ScoredCompletions(Completions):
    """Completions with their scores and read-outs, in the layout of the reward model's input.

    ``scored[PrefixScores()]`` returns a read-out that was requested: float32, 0 at padding. The
    class of the read-out documents its shape.

    Attributes:
        score: Score of each text, shape (batch,), float32.
        readouts: Values by requested read-out; see :mod:`textgym.models.readouts`.
        reward_model: The model that scored, for assigners that score more texts; None in batches
            that were put together by hand.
    """

    score: Tensor
    readouts: Mapping[Readout, Tensor] = field(default_factory=dict)
    reward_model: Scorer | None = None

    def by_reward_model_token(self, compute: Callable[[ScoredCompletions], Tensor]) -> Tensor:
        """Compute values of tokens from read-outs that belong to the reward model's own tokens.

        If the reward model shares the policy's tokenizer, these are the same tokens. Otherwise
        (:class:`textgym.models.bridge.TextCompletions`) the values are split among the policy's.

        Args:
            compute: Takes scored completions and returns values, shape (batch, num_tokens).

        Returns:
            Shape (batch, num_tokens).
        """
        return compute(self)

    def __getitem__(self, readout: Readout) -> Tensor:
        if readout not in self.readouts:
            raise InvalidArgumentError(
                "readout",
                readout,
                "was not requested when the completions were scored: name it in "
                "reward_model.read(..., readouts) or in the assigner's attribute readouts",
            )
        return self.readouts[readout]
