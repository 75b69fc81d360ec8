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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from textgym.errors import InvalidArgumentError
from textgym.models.incremental.cache import GrowingLayer, layers_of
from textgym.models.recorder import RecordedAttention

__all__ = ["IncrementalDecoder", "Pass", "Text"]

Text = Sequence[int]
"""Token ids, at least one."""


@dataclass(frozen=True)
class Pass:
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
    def _remember(self, done: Pass) -> None:
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
            for layer in layers_of(self._cache):
                layer.keys[waiting] = layer.keys[waiting].roll(1, dims=2)
                layer.values[waiting] = layer.values[waiting].roll(1, dims=2)
        self._done(texts, Pass(rows, rows, lengths, False, output, attention))

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
        for kept, new in zip(layers_of(self._cache), layers_of(cache), strict=True):
            kept.resize(missing)
            kept.keys[rows, :, start:] = new.keys.take_along_dim(order, dim=2)
            kept.values[rows, :, start:] = new.values.take_along_dim(order, dim=2)
        at = torch.arange(len(rows), device=rows.device)
        self._done(texts, Pass(rows, at, lengths, True, output, attention))

    def _empty_like(self, cache: DynamicCache) -> DynamicCache:
        """A cache without columns, for the whole batch."""
        if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise TypeError("it keeps something other than keys and values")
        empty = DynamicCache()
        empty.layers = [
            GrowingLayer(layer.keys, layer.values, len(self._texts)) for layer in layers_of(cache)
        ]
        return empty

    def _crop(self) -> None:
        """Cut the columns on the left that no row uses."""
        assert self._cache is not None
        unused = self._mask.shape[1] - max(len(text) for text in self._texts if text is not None)
        self._mask = self._mask[:, unused:]
        for layer in layers_of(self._cache):
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

    def _done(self, texts: Mapping[int, list[int]], done: Pass) -> None:
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
