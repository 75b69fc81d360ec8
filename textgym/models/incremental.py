"""Reading texts that grow: what continues a text that was read before costs one token.

A reader is handed the current texts at every step, a batch at a time, and keeps the keys and values
of what it read. A row whose text is the one it had, plus one token, costs that token. A row whose
text is the one it had costs nothing. Any other text is read from its start, in place, while the
other rows stay as they are. So whoever steps environments need not say where an episode began.

Layout of the kept columns. Every text ends in the last one, and a mask hides what is left of its
start, so that a distance between columns is a distance between tokens: sliding windows hold, and so
do biases that follow from the mask. Row 0 gets the token x, row 1 waits, row 2 starts anew::

    . a b c        a b c x        a b c x        what is masked after the append, a fill token in
    d e f g   →    d e f g   →    d e f g        a row that waits, is rotated to the left end; what
    . . h i        . h i .        . . p q        no row uses on the left is cut
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from textgym.errors import InvalidArgumentError
from textgym.models.completions import Completions, LeftAligned, ScoredCompletions
from textgym.models.readout import RecordedAttention
from textgym.models.readouts import AttentionMap, PrefixScores, Readout, layer_indices
from textgym.models.reward_model import RewardModel

__all__ = [
    "IncrementalDecoder",
    "IncrementalLanguageModel",
    "IncrementalRewardModel",
    "NextToken",
]

Text = Sequence[int]
"""Token ids, at least one."""


@dataclass(frozen=True)
class _Pass:
    """One forward pass, over whole texts at the left end or over the newest token of each.

    Attributes:
        rows: The rows of the batch that it was made for, shape (num_read,).
        at: The same rows in the output, shape (num_read,).
        lengths: How many tokens their texts have now, shape (num_read,).
        is_restart: Whether it read whole texts.
        output: What the model returned.
        attention: What was recorded of its attention.
    """

    rows: Tensor
    at: Tensor
    lengths: Tensor
    is_restart: bool
    output: Any
    attention: RecordedAttention | None

    def newest(self, values: Tensor) -> Tensor:
        """From (rows of the output, tokens, ...) to what the last tokens have, (num_read, ...)."""
        return values[self.at, self.lengths - 1 if self.is_restart else 0]


class _GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in buffers with room for the columns to come.

    The library's own layer allocates all of them anew, and copies them, for every token.

    Args:
        keys: Those of another layer, for their sizes, dtype and device, shape
            (any, num_heads, any, head_dim).
        values: Likewise; they may differ from the keys in their sizes.
        batch_size: Number of rows; there are no columns yet.
    """

    def __init__(self, keys: Tensor, values: Tensor, batch_size: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = [
            states.new_empty((batch_size, states.shape[1], 0, states.shape[3]))
            for states in (keys, values)
        ]
        self._columns = slice(0, 0)
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and all values, (batch, num_heads, columns, ...)."""
        start, end = self._columns.start, self._columns.stop
        new_end = end + key_states.shape[2]
        if new_end > self._buffers[0].shape[2]:
            self._move(0, room=2 * (new_end - start))
            new_end, end = new_end - start, end - start
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end:new_end] = states
        self._columns = slice(self._columns.start, new_end)
        return self._show()

    def resize(self, more: int) -> None:
        """Add so many columns on the left, of zeros, or take them away."""
        if more > 0:
            self._move(more, room=self._columns.stop - self._columns.start + more)
        self._columns = slice(max(0, self._columns.start - more), self._columns.stop)
        self._show()

    def _move(self, start: int, room: int) -> None:
        """Into new buffers of ``room`` columns, the present ones from ``start`` on."""
        length = self._columns.stop - self._columns.start
        for i, old in enumerate(self._buffers):
            new = old.new_empty((*old.shape[:2], room, old.shape[3]))
            new[:, :, :start] = 0.0  # They are masked, and must still be numbers.
            new[:, :, start : start + length] = old[:, :, self._columns]
            self._buffers[i] = new
        self._columns = slice(start, start + length)

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, self._columns] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


class IncrementalDecoder(ABC):
    """Keys and values of a batch of texts, and the passes that extend them.

    Args:
        module: A decoder of Hugging Face, with or without a head. Whoever changes it calls
            :meth:`forget`: what it said about the texts so far is kept.

    Raises:
        InvalidArgumentError: If reading a text piece by piece is not the same as reading it at once
            for this model, as for encoders, or if it keeps something other than keys and values.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        self._module = module
        self._parameters = set(inspect.signature(module.forward).parameters)
        self._forget(0)
        self._check()

    def _forget(self, num_rows: int) -> None:
        self._texts: list[list[int] | None] = [None] * num_rows
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros((num_rows, 0), dtype=torch.bool, device=self._module.device)

    @abstractmethod
    def _forward(self, inputs: Mapping[str, Any]) -> tuple[Any, RecordedAttention | None]:
        """Run the model."""

    @abstractmethod
    def _remember(self, done: _Pass) -> None:
        """Keep what is wanted of a pass."""

    @abstractmethod
    def _newest(self) -> Tensor:
        """What is remembered of the newest tokens, shape (batch, ...), to compare readers by."""

    def forget(self) -> None:
        """Read everything anew, as is needed after a change of the model."""
        self._forget(0)

    @torch.no_grad()
    def advance(self, texts: Sequence[Text | None]) -> None:
        """Bring every row to its current text, in at most two forward passes.

        Args:
            texts: Token ids per row; None where nobody asks, and the row stays as it is. With
                another number of rows than the last time everything is read anew.

        Raises:
            InvalidArgumentError: If a text is empty.
        """
        if len(texts) != len(self._texts):
            self._forget(len(texts))
        grown: dict[int, list[int]] = {}
        restarted: dict[int, list[int]] = {}
        for row, (text, known) in enumerate(zip(texts, self._texts, strict=True)):
            if text is None or (ids := list(text)) == known:
                continue
            if not ids:
                raise InvalidArgumentError("texts", texts, f"row {row} has no token to read")
            (grown if ids[:-1] == known else restarted)[row] = ids
        try:
            if grown:
                self._append(grown)
            if restarted:
                self._restart(restarted)
        except BaseException:  # Some layers have what others lack.
            self._forget(len(texts))
            raise
        if grown or restarted:
            self._crop()

    def _append(self, texts: Mapping[int, list[int]]) -> None:
        """Read the last token of some texts; the rows that wait are fed a token, and lose it."""
        assert self._cache is not None
        rows = self._tensor(list(texts))
        lengths = self._tensor([len(text) for text in texts.values()])
        # Position 0 exists in every model, however few positions it has learned.
        ids, positions = self._tensor([[0]] * len(self._texts)), self._tensor([0])
        positions = positions.repeat(len(self._texts), 1)
        ids[rows, 0] = self._tensor([text[-1] for text in texts.values()])
        positions[rows, 0] = lengths - 1
        mask = pad(self._mask, (0, 1), value=True)
        output, attention = self._run(ids, mask, positions, self._cache, restart=None)
        waiting = torch.ones_like(mask[:, 0])
        waiting[rows] = False
        mask[waiting, -1] = False
        self._mask = mask
        if waiting.any():
            self._mask[waiting] = mask[waiting].roll(1, dims=1)
            for layer in _layers(self._cache):
                layer.keys[waiting] = layer.keys[waiting].roll(1, dims=2)
                layer.values[waiting] = layer.values[waiting].roll(1, dims=2)
        self._done(texts, _Pass(rows, rows, lengths, False, output, attention))

    def _restart(self, texts: Mapping[int, list[int]]) -> None:
        """Read whole texts and put their keys and values at the right end of their rows."""
        rows = self._tensor(list(texts))
        lengths = self._tensor([len(text) for text in texts.values()])
        width = int(lengths.max())
        columns = torch.arange(width, device=rows.device)
        ids = self._tensor([text + [0] * (width - len(text)) for text in texts.values()])
        mask = columns < lengths[:, None]  # Padding on the right: no query is without any key.
        cache = DynamicCache()
        positions = columns.repeat(len(texts), 1)
        output, attention = self._run(ids, mask, positions, cache, restart=lengths)
        missing = max(0, width - self._mask.shape[1])
        self._mask = pad(self._mask, (missing, 0), value=False)
        start = self._mask.shape[1] - width
        self._mask[rows] = False
        self._mask[rows, start:] = mask.flip(1)
        # Column c of the last `width` ones gets token c - (width - length) of the text.
        order = (columns - (width - lengths)[:, None]).clamp(min=0)[:, None, :, None]
        if self._cache is None:
            self._cache = self._empty_like(cache)
        for kept, new in zip(_layers(self._cache), _layers(cache), strict=True):
            kept.resize(missing)
            kept.keys[rows, :, start:] = new.keys.take_along_dim(order, dim=2)
            kept.values[rows, :, start:] = new.values.take_along_dim(order, dim=2)
        at = torch.arange(len(rows), device=rows.device)
        self._done(texts, _Pass(rows, at, lengths, True, output, attention))

    def _empty_like(self, cache: DynamicCache) -> DynamicCache:
        """A cache without columns, for the whole batch."""
        if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise TypeError("it keeps something other than keys and values")
        empty = DynamicCache()
        empty.layers = [
            _GrowingLayer(layer.keys, layer.values, len(self._texts)) for layer in _layers(cache)
        ]
        return empty

    def _crop(self) -> None:
        """Cut the columns on the left that no row uses."""
        assert self._cache is not None
        unused = self._mask.shape[1] - max(len(text) for text in self._texts if text is not None)
        self._mask = self._mask[:, unused:]
        for layer in _layers(self._cache):
            layer.resize(-unused)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: DynamicCache,
        restart: Tensor | None,
    ) -> tuple[Any, RecordedAttention | None]:
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in self._parameters:
            inputs["position_ids"] = positions
        return self._forward(inputs | self._further_inputs(restart))

    def _further_inputs(self, restart: Tensor | None) -> dict[str, Any]:
        """What the model is given besides; the lengths of the texts if it reads whole ones."""
        return {}

    def _done(self, texts: Mapping[int, list[int]], done: _Pass) -> None:
        self._remember(done)
        for row, text in texts.items():
            self._texts[row] = text

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._module.device)

    def _check(self) -> None:
        """Read two short texts in pieces and at once, and compare."""
        embeddings: Any = self._module.get_input_embeddings()
        size = len(embeddings.weight)
        long, short = [i % size for i in (3, 4, 5, 6)], [7 % size, 8 % size]
        try:
            self.advance([long[:2], long])
            self.advance([long[:3], None])  # One row waits,
            self.advance([long, short])  # and starts anew.
            in_pieces = self._newest()
            self._forget(2)
            at_once = []
            for text in (long, short):
                self.advance([text])
                at_once.append(self._newest()[0])
            expected = torch.stack(at_once)
            tolerance = 1e-3 if self._module.dtype == torch.float32 else 5e-2
            if not (in_pieces - expected).abs().max() <= tolerance * expected.abs().max():
                raise ValueError("in pieces it says something else than at once")
        except Exception as error:  # Models of all kinds fail in all kinds of ways.
            raise InvalidArgumentError(
                "model",
                type(self._module).__name__,
                "cannot be read token by token with the keys and values of the tokens before; "
                f"pass a decoder with attention in every layer ({str(error).splitlines()[0]})",
            ) from error
        self._forget(0)


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers of a cache, each with the attributes ``keys`` and ``values``."""
    return list(cache.layers)


class NextToken(NamedTuple):
    """What a language model says about the end of each text.

    Attributes:
        hidden: Last hidden state of the last token, float32, shape (batch, hidden_size).
        logits: Logits of the token after it, float32, shape (batch, vocab_size).
    """

    hidden: Tensor
    logits: Tensor


class IncrementalLanguageModel(IncrementalDecoder):
    """Reads growing texts with a causal language model.

    Args:
        model: The language model; it is put in evaluation mode, and must stay as it is.

    Raises:
        InvalidArgumentError: If it cannot be read token by token.

    Example:
        >>> from textgym.models import load_language_model
        >>> reader = IncrementalLanguageModel(load_language_model("embedded"))
        >>> first = reader.read([[1, 50, 60], [1, 70]])  # five tokens go through the model
        >>> second = reader.read([[1, 50, 60, 80], [1, 70, 90]])  # two more
        >>> second.hidden.shape, second.logits.shape
        (torch.Size([2, 256]), torch.Size([2, 4096]))
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._ends = torch.zeros(0, dtype=torch.int64)
        super().__init__(model.eval())

    def _forget(self, num_rows: int) -> None:
        super()._forget(num_rows)
        self._last: NextToken | None = None

    def read(self, texts: Sequence[Text | None]) -> NextToken:
        """What the model says about the end of each text.

        Args:
            texts: Token ids per row; None for a row that nobody asks about. Such a row holds what
                was last said about it, or zeros.

        Raises:
            InvalidArgumentError: If a text is empty, or no row was ever asked about.
        """
        self.advance(texts)
        if self._last is None:
            raise InvalidArgumentError("texts", texts, "pass the text of at least one row")
        return self._last

    def _further_inputs(self, restart: Tensor | None) -> dict[str, Any]:
        self._ends = self._tensor([0]) if restart is None else (restart - 1).unique()
        keep = {"logits_to_keep": self._ends} if "logits_to_keep" in self._parameters else {}
        return {"output_hidden_states": True, **keep}

    def _forward(self, inputs: Mapping[str, Any]) -> tuple[Any, None]:
        return self._module(**inputs), None

    def _remember(self, done: _Pass) -> None:
        hidden = done.newest(done.output.hidden_states[-1]).float()
        logits = done.output.logits
        if "logits_to_keep" in self._parameters:  # Only the columns where a text ends.
            column = torch.searchsorted(self._ends, done.lengths - 1) if done.is_restart else 0
            logits = logits[done.at, column].float()
        else:
            logits = done.newest(logits).float()
        if self._last is None:
            shapes = ((len(self._texts), values.shape[1]) for values in (hidden, logits))
            self._last = NextToken(*(hidden.new_zeros(shape) for shape in shapes))
        # Out of place: what was handed out before stays as it was.
        self._last = NextToken(
            self._last.hidden.index_copy(0, done.rows, hidden),
            self._last.logits.index_copy(0, done.rows, logits),
        )

    def _newest(self) -> Tensor:
        assert self._last is not None
        return torch.cat(self._last, dim=1)


class IncrementalRewardModel(IncrementalDecoder):
    """Reads growing texts with a causal reward model: prefix scores and attention maps.

    Args:
        reward_model: The reward model, a decoder.
        readouts: What to read out, of the classes ``PrefixScores`` and ``AttentionMap``.

    Raises:
        InvalidArgumentError: If it is no decoder, cannot give a read-out, or the read-out is of
            another class: those need the whole text at once.

    Example:
        >>> from textgym.models import load_reward_model
        >>> reader = IncrementalRewardModel(load_reward_model("embedded"), [PrefixScores()])
        >>> _ = reader.read(Completions.from_lists([[1, 50, 60]], [[80]]))
        >>> scored = reader.read(Completions.from_lists([[1, 50, 60]], [[80, 90]]))  # one token
        >>> scored[PrefixScores()].shape
        torch.Size([1, 5])
    """

    def __init__(self, reward_model: RewardModel, readouts: Collection[Readout]) -> None:
        if not self.can_read(reward_model, readouts):
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
        super().__init__(reward_model.model.base_model)

    @staticmethod
    def can_read(reward_model: RewardModel, readouts: Collection[Readout]) -> bool:
        """Whether a reward model and read-outs are of the kind that can be read token by token.

        A class with a ``read`` of its own is not: what it does to a batch is unknown here.
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
        """Score a batch whose texts have grown, or not, since the last time.

        Args:
            completions: All rows of the batch.
            rows: The rows that are asked about, shape (batch,), bool; None for all. The others are
                not read.

        Returns:
            The rows asked about, at the left end, with what ``reward_model.read`` gives.

        Raises:
            InvalidArgumentError: If a row that is asked about has no token.
        """
        completions = completions.to(self._mask.device)
        if rows is None:
            rows = torch.ones(len(completions), dtype=torch.bool)
        asked = rows.to(self._mask.device).nonzero()[:, 0]
        chosen = completions.select(asked)
        aligned = LeftAligned.of(chosen)
        lengths = aligned.attention_mask.sum(1)
        texts: list[Text | None] = [None] * len(completions)
        for row, ids, length in zip(
            asked.tolist(), aligned.input_ids.tolist(), lengths.tolist(), strict=True
        ):
            texts[row] = ids[:length]
        self.advance(texts)
        longest = aligned.input_ids.shape[1]
        scores = self._scores[asked, :longest]
        values: dict[Readout, Tensor] = {
            one: kept[asked, :longest, :longest] for one, kept in self._maps.items()
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

    def _forward(self, inputs: Mapping[str, Any]) -> tuple[Any, RecordedAttention | None]:
        if not self._wanted:
            return self._module(**inputs), None
        recorder = self.reward_model.attention_recorder()
        return recorder.run(self._module, inputs, self._last_only)

    def _remember(self, done: _Pass) -> None:
        self._reserve(int(done.lengths.max()))
        scores = self.reward_model.score_states(done.output.last_hidden_state)
        rows, last = done.rows, done.lengths - 1
        if not done.is_restart:
            self._scores[rows, last] = done.newest(scores)
            for one, kept in self._maps.items():
                kept[rows, last] = self._own_columns(self._weights(done, one)[done.at, 0], done)
            return
        width = scores.shape[1]
        mask = torch.arange(width, device=rows.device) <= last[:, None]
        self._scores[rows] = 0.0
        self._scores[rows, :width] = scores * mask
        for one, kept in self._maps.items():
            kept[rows] = 0.0
            kept[rows, :width, :width] = self._weights(done, one) * mask[:, :, None]

    @staticmethod
    def _weights(done: _Pass, readout: AttentionMap) -> Tensor:
        """Attention of the tokens that a pass read to all columns."""
        assert done.attention is not None
        return done.attention.weights(readout.layers, readout.heads)

    def _own_columns(self, weights: Tensor, done: _Pass) -> Tensor:
        """From columns in which every text ends in the last one to the texts' own tokens."""
        width = weights.shape[1]
        tokens = torch.arange(self._scores.shape[1], device=weights.device)
        columns = tokens + (width - done.lengths)[:, None]
        return weights.gather(1, columns.clamp(max=width - 1)) * (columns < width)

    def _reserve(self, length: int) -> None:
        """Make room for texts of this length, by doubling."""
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
