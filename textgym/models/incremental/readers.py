"""Readers of growing texts: a language model's next token, and a reward model's read-outs."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError
from textgym.models.checks import check_model
from textgym.models.completions import Completions, LeftAligned, ScoredCompletions
from textgym.models.incremental.decoder import IncrementalDecoder, Pass, Text
from textgym.models.incremental.output import Output
from textgym.models.readouts import (
    AttentionMap,
    PrefixScores,
    Readout,
    checked_readouts,
    layer_indices,
)
from textgym.models.reward_model import RewardModel
from textgym.models.signature import body_of

__all__ = ["IncrementalLanguageModel", "IncrementalRewardModel", "NextToken"]


class NextToken(NamedTuple):
    """A language model's output at the end of each text.

    Attributes:
        hidden: Last hidden state of the last token, float32, shape (batch, hidden_size).
        logits: Logits of the token after it, float32, shape (batch, vocab_size).
    """

    hidden: Tensor
    logits: Tensor


class IncrementalLanguageModel(IncrementalDecoder):
    """Reads growing texts with a causal language model.

    A model that keeps something other than keys and values, such as the state of Mamba or of some
    layers of Qwen3-Next, is read all the same: the whole text anew whenever it changes. A warning
    says so, because that is slower, the more so the longer the texts.

    Args:
        model: The language model. It is put in evaluation mode. After changing its weights, call
            :meth:`forget`.

    Raises:
        InvalidArgumentError: If the model looks ahead, as encoders do, or has a part of its text
            elsewhere, as encoder-decoders do.

    Example:
        >>> from textgym.models import load_language_model
        >>> reader = IncrementalLanguageModel(load_language_model("embedded"))
        >>> first = reader.read([[1, 50, 60], [1, 70]])  # five tokens go through the model
        >>> second = reader.read([[1, 50, 60, 80], [1, 70, 90]])  # two more
        >>> second.hidden.shape, second.logits.shape
        (torch.Size([2, 256]), torch.Size([2, 4096]))
    """

    may_reread = True

    def __init__(self, model: PreTrainedModel) -> None:
        check_model("model", model)
        self._ends = torch.zeros(0, dtype=torch.int64)
        super().__init__(model.eval())
        if not self.is_incremental:
            warnings.warn(
                f"{type(model).__name__} keeps something other than the keys and values of all "
                "tokens: whole texts are read anew for every token, which takes longer the longer "
                "they are; the sampler of another engine can save that (sampler=...)",
                RuntimeWarning,
                stacklevel=2,
            )

    def _forget(self, num_rows: int) -> None:
        super()._forget(num_rows)
        self._last: NextToken | None = None

    def read(self, texts: Sequence[Text | None]) -> NextToken:
        """The model's output at the end of each text.

        Args:
            texts: Token ids per row; None for rows not requested, which keep their last output, or
                zeros if they have none.

        Raises:
            InvalidArgumentError: If a text is empty, or no row was ever requested.
        """
        self.advance(texts)
        if self._last is None:
            raise InvalidArgumentError("texts", texts, "pass the text of at least one row")
        return self._last

    def _further_inputs(self, restart: Tensor | None) -> dict[str, Any]:
        self._ends = self._tensor([0]) if restart is None else (restart - 1).unique()
        return {"logits_to_keep": self._ends} if "logits_to_keep" in self._parameters else {}

    def _forward(self, inputs: Mapping[str, Any]) -> Output:
        body = body_of(self._module)
        if body is None:
            output = self._module(**inputs, output_hidden_states=True)
            return Output(output.hidden_states[-1], output.logits)
        # Asked for hidden states, the library keeps those of all layers, and attaches hooks for
        # good, with which no model can be pickled.
        seen: list[Tensor] = []
        hook = body.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state))
        try:
            logits = self._module(**inputs).logits
        finally:
            hook.remove()
        return Output(seen[-1], logits)

    def _remember(self, done: Pass) -> None:
        hidden = done.newest(done.output.hidden).float()
        logits = done.output.logits
        assert logits is not None
        if "logits_to_keep" in self._parameters and done.number is None:  # only where a text ends
            column = torch.searchsorted(self._ends, done.lengths - 1)
            logits = logits[done.at, column].float()
        else:
            logits = done.newest(logits).float()
        if self._last is None:
            shapes = ((len(self._texts), values.shape[1]) for values in (hidden, logits))
            self._last = NextToken(*(hidden.new_zeros(shape) for shape in shapes))
        # Out of place, so that outputs already returned do not change.
        self._last = NextToken(
            self._last.hidden.index_copy(0, done.rows, hidden),
            self._last.logits.index_copy(0, done.rows, logits),
        )

    def _drop_ends(self, rows: Tensor, lengths: Tensor) -> None:
        """Nothing is stored but the output at the end, and that will be another one."""

    def _newest(self) -> Tensor:
        assert self._last is not None
        return torch.cat(self._last, dim=1)


class IncrementalRewardModel(IncrementalDecoder):
    """Reads growing texts with a causal reward model: prefix scores and attention maps.

    Args:
        reward_model: The reward model; it must be a decoder.
        readouts: What to read out: any of ``PrefixScores`` and ``AttentionMap``. All other
            read-outs need the whole text at once.
        max_changed: Texts that differ from the known ones in so many tokens at the end, or fewer,
            are read from the first of these; see
            :class:`~textgym.models.incremental.decoder.IncrementalDecoder`.

    Raises:
        InvalidArgumentError: If the reward model is not a decoder, or a read-out is not one of
            these or not supported by the model.

    Example:
        >>> from textgym.models import Completions, PrefixScores, load_reward_model
        >>> reader = IncrementalRewardModel(load_reward_model("embedded"), [PrefixScores()])
        >>> _ = reader.read(Completions.from_lists([[1, 50, 60]], [[80]]))
        >>> scored = reader.read(Completions.from_lists([[1, 50, 60]], [[80, 90]]))  # one token
        >>> scored[PrefixScores()].shape
        torch.Size([1, 5])
    """

    def __init__(
        self, reward_model: RewardModel, readouts: Collection[Readout], max_changed: int = 0
    ) -> None:
        if not isinstance(reward_model, RewardModel):
            raise InvalidArgumentError("reward_model", reward_model, "must be a RewardModel")
        if not self.can_read(reward_model, checked_readouts(readouts)):
            raise InvalidArgumentError(
                "readouts",
                readouts,
                "only PrefixScores and AttentionMap of a decoder can be read token by token; use "
                "reward_model.read",
            )
        reward_model.check_readouts(readouts)
        self.reward_model = reward_model
        self.readouts = frozenset(readouts)
        self._wanted = [readout for readout in readouts if isinstance(readout, AttentionMap)]
        self._last_only = all(layer_indices(one.layers) == (-1,) for one in self._wanted)
        at_most = check_whole_number("max_changed", max_changed, 0)
        super().__init__(reward_model.model.base_model, at_most)

    @staticmethod
    def can_read(reward_model: RewardModel, readouts: Collection[Readout]) -> bool:
        """Whether a reward model and read-outs are of the kind that can be read token by token.

        Subclasses that override ``read`` are not, since what they do to a batch is unknown.
        """
        return (
            getattr(type(reward_model), "read", None) is RewardModel.read
            and reward_model.is_causal
            and all(isinstance(readout, PrefixScores | AttentionMap) for readout in readouts)
        )

    def _forget(self, num_rows: int) -> None:
        super()._forget(num_rows)
        device = self._mask.device
        self._scores = torch.zeros((num_rows, 0), device=device)
        self._maps = {one: torch.zeros((num_rows, 0, 0), device=device) for one in self._wanted}

    def read(self, completions: Completions, rows: Tensor | None = None) -> ScoredCompletions:
        """Score a batch whose texts may have grown since the last call.

        Args:
            completions: All rows of the batch.
            rows: The rows requested, shape (batch,), bool; None for all. Other rows are not read.

        Returns:
            The requested rows, left-aligned, with the values that ``reward_model.read`` gives.

        Raises:
            InvalidArgumentError: If a requested row has no token.
        """
        completions = completions.to(self._mask.device)
        if rows is None:
            rows = torch.ones(len(completions), dtype=torch.bool)
        requested = rows.to(self._mask.device).nonzero()[:, 0]
        chosen = completions.select(requested)
        aligned = LeftAligned.of(chosen)
        lengths = aligned.attention_mask.sum(1)
        texts: list[Text | None] = [None] * len(completions)
        for row, ids, length in zip(
            requested.tolist(), aligned.input_ids.tolist(), lengths.tolist(), strict=True
        ):
            texts[row] = ids[:length]
        self.advance(texts)
        longest = aligned.input_ids.shape[1]
        scores = self._scores[requested, :longest]
        values: dict[Readout, Tensor] = {
            one: kept[requested, :longest, :longest] for one, kept in self._maps.items()
        }
        if PrefixScores() in self.readouts:
            values[PrefixScores()] = scores
        return ScoredCompletions(
            aligned.input_ids,
            aligned.attention_mask,
            chosen.completion_mask.gather(1, aligned.order),
            score=scores.gather(1, lengths[:, None] - 1)[:, 0],
            readouts=values,
            reward_model=self.reward_model,
        )

    def _forward(self, inputs: Mapping[str, Any]) -> Output:
        if not self._wanted:
            return Output(self._module(**inputs).last_hidden_state)
        recorder = self.reward_model.attention_recorder()
        output, attention = recorder.run(self._module, inputs, self._last_only)
        return Output(output.last_hidden_state, attention=attention)

    def _remember(self, done: Pass) -> None:
        self._reserve(int(done.lengths.max()))
        scores = self.reward_model.score_states(done.output.hidden)
        rows, last = done.rows, done.lengths - 1
        if done.number is not None:
            queries = last[:, None] - torch.arange(done.number - 1, -1, -1, device=rows.device)
            self._scores[rows[:, None], queries] = scores[done.at]
            for one, kept in self._maps.items():
                weights = self._own_columns(self._weights(done, one)[done.at], done)
                kept[rows[:, None], queries] = weights
            return
        width = scores.shape[1]
        mask = torch.arange(width, device=rows.device) <= last[:, None]
        self._scores[rows] = 0.0
        self._scores[rows, :width] = scores * mask
        for one, kept in self._maps.items():
            kept[rows] = 0.0
            kept[rows, :width, :width] = self._weights(done, one) * mask[:, :, None]

    def _drop_ends(self, rows: Tensor, lengths: Tensor) -> None:
        gone = torch.arange(self._scores.shape[1], device=rows.device) >= lengths[:, None]
        self._scores[rows] = self._scores[rows].masked_fill(gone, 0.0)
        for kept in self._maps.values():
            kept[rows] = kept[rows].masked_fill(gone[:, :, None], 0.0)

    @staticmethod
    def _weights(done: Pass, readout: AttentionMap) -> Tensor:
        """Attention from the tokens of a pass to all columns."""
        assert done.output.attention is not None
        return done.output.attention.weights(readout.layers, readout.heads)

    def _own_columns(self, weights: Tensor, done: Pass) -> Tensor:
        """Shift right-aligned columns to the left, so that column t is token t of its text."""
        width = weights.shape[2]
        tokens = torch.arange(self._scores.shape[1], device=weights.device)
        columns = (tokens + (width - done.lengths)[:, None])[:, None]  # (num_read, 1, room)
        return weights.take_along_dim(columns.clamp(max=width - 1), dim=2) * (columns < width)

    def _reserve(self, length: int) -> None:
        """Make room for texts of this length; the room doubles, so that this is rare."""
        room = self._scores.shape[1]
        if length > room:
            more = max(length, 2 * room, 16) - room
            self._scores = pad(self._scores, (0, more))
            self._maps = {one: pad(kept, (0, more, 0, more)) for one, kept in self._maps.items()}

    def _newest(self) -> Tensor:
        ends = self._tensor([len(text or [0]) - 1 for text in self._texts])
        rows = torch.arange(len(ends), device=ends.device)
        newest = [kept[rows, ends, :4] for kept in self._maps.values()]
        return torch.cat([self._scores[rows, ends, None], *newest], dim=1)
