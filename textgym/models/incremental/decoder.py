"""Read growing texts with a key-value cache: extending a known text costs one token.

A reader gets the current texts at every step, a batch at a time, and caches the keys and values of
what it has read. A row whose text grew by one token costs that token. A row whose text is unchanged
costs nothing. If the last few tokens may change, as those of another tokenizer do, a row costs its
tokens from the first new one on. Any other text is read from its start, in place, while the other
rows stay as they are. So callers that step environments need not say where an episode began.

Cache layout: every text ends in the last column, and a mask hides the columns left of its start.
Distances between columns are then distances between tokens, so sliding windows work, and so do
biases derived from the mask. Below, row 0 gets the token x, row 1 waits, and row 2 starts anew::

    . a b c        a b c x        a b c x        A waiting row is fed a fill token. It is masked and
    d e f g   →    d e f g   →    d e f g        rotated to the left end. Columns on the left that
    . . h i        . h i .        . . p q        no row uses are cut.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError
from textgym.models.incremental.cache import GrowingLayer, layers_of
from textgym.models.incremental.lean import LeanDecoder
from textgym.models.incremental.output import Output
from textgym.models.placement import is_quantized
from textgym.models.signature import first_position, forward_parameters, longest_text

__all__ = ["IncrementalDecoder", "Pass", "Text", "example_texts", "largest_rounding"]

Text = Sequence[int]
"""Token ids, at least one."""

_ROUNDINGS = 8
"""How many roundings of the dtype a sound cache may be off, relative to the largest value.

Reading in pieces adds up the same numbers in another order, and every layer rounds anew. Measured
in bfloat16: 0.6 roundings for SmolLM2-135M (30 layers), at most 0.6 for random Llamas of 2 to 96
layers.
"""


_QUANTIZED = 0.05
"""How much a sound cache may be off with quantised weights, relative to the largest value.

Some quantisations round the hidden states to 8 bits too, which is 1/127 of the largest number of a
state. Measured: 0.008 for a Llama of two layers, by bitsandbytes.
"""


def example_texts(module: PreTrainedModel) -> tuple[list[int], list[int]]:
    """A longer text and a shorter one, to compare ways of reading with.

    Layers that compress or average what lies some tokens back need more than a few of them.
    """
    embeddings: Any = module.get_input_embeddings()
    size, longest = len(embeddings.weight), longest_text(module) or 12
    number = min(12, longest)
    return [(3 + i) % size for i in range(number)], [(7 + i) % size for i in range(number // 2)]


def largest_rounding(module: PreTrainedModel, dtype: torch.dtype) -> float:
    """How much two ways to compute the same may differ, relative to the largest value.

    Args:
        module: The model.
        dtype: What it computes in.
    """
    # In float32, matrices may be multiplied in TF32, whose rounding is about 1e-3.
    rounding = max(1e-3, _ROUNDINGS * torch.finfo(dtype).eps)
    return max(rounding, _QUANTIZED) if is_quantized(module) else rounding


@dataclass(frozen=True)
class Pass:
    """One forward pass, over whole texts (left-aligned) or over the newest tokens of each text.

    Attributes:
        rows: The rows of the batch that were read, shape (num_read,).
        at: The same rows in the model's output, shape (num_read,).
        lengths: Number of tokens of their texts, shape (num_read,).
        number: How many tokens at the end of each text were read; None: whole texts.
        output: The model's output.
    """

    rows: Tensor
    at: Tensor
    lengths: Tensor
    number: int | None
    output: Output

    def newest(self, values: Tensor) -> Tensor:
        """Pick the values of the last tokens: (output rows, tokens, ...) to (num_read, ...)."""
        return values[self.at, self.lengths - 1 if self.number is None else -1]


class IncrementalDecoder(ABC):
    """Caches the keys and values of a batch of texts, and extends them.

    Whole texts are read by the model's own forward pass. Single tokens are read by
    :class:`~textgym.models.incremental.lean.LeanDecoder` if it knows the architecture and agrees
    with the model, and else by the model as well.

    Construction reads two short texts in pieces, and compares with what the model itself says of
    them, without a cache, a mask or positions. The architecture is judged in the dtype of the
    weights. If autocast is on, the comparison is repeated under it.

    Some architectures keep a state instead of keys and values (Mamba), in some layers (Qwen3-Next)
    or nothing at all (GPT). A subclass with ``may_reread`` reads their texts anew and whole
    whenever they change.

    Args:
        module: A Hugging Face decoder, with or without a head. Call :meth:`forget` after changing
            its weights: results for known texts are cached.
        max_changed: A text that has at most this many tokens after what it shares with the known
            one is read from there. With 0, a text that did anything but grow by one token is read
            from its start.

    Raises:
        InvalidArgumentError: If reading a text in pieces gives something else than reading it at
            once, as with encoders, or if the model caches anything but keys and values.
    """

    may_reread: ClassVar[bool] = False
    """Whether models are accepted that keep something other than keys and values."""

    def __init__(self, module: PreTrainedModel, max_changed: int = 0) -> None:
        self._module, self._max_changed = module, max_changed
        self._parameters = forward_parameters(module)
        self._first_position = first_position(module)
        self._keeps, self._can_be_lean = True, LeanDecoder.knows(module)
        self._forget(0)
        if self._can_be_lean:
            try:
                self._can_be_lean = self._fault() is None
            except InvalidArgumentError:  # Rounding is another one there.
                self._can_be_lean = False
        fault = None if self._can_be_lean else self._fault()
        if fault is not None and self.may_reread:
            self._keeps = False
            fault = None if self._fault() is None else fault
        if fault is not None:
            wanted = "causal decoder"
            wanted += "" if self.may_reread else " with attention in every layer"
            raise InvalidArgumentError(
                "model",
                type(module).__name__,
                "cannot be read token by token, from what it keeps of the tokens before; pass a "
                f"{wanted} ({fault})",
            )

    @property
    def is_incremental(self) -> bool:
        """Whether keys and values are kept; if not, whole texts are read whenever they change."""
        return self._keeps

    @property
    def is_lean(self) -> bool:
        """Whether single tokens are read without the model's own forward pass."""
        return self._can_be_lean and LeanDecoder.knows(self._module)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: all but the lean decoder, which follows from the model."""
        lean = self._lean
        return {**vars(self), "_lean": None if lean is None else lean.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on with the texts that were read; if they would be read otherwise here, read anew."""
        vars(self).update(state)
        dtype = state["_lean"]
        lean = None if dtype is None else LeanDecoder.of(self._module)
        vars(self)["_lean"] = lean
        if dtype != (None if lean is None else lean.dtype):
            self._forget(len(self._texts))

    def _forget(self, num_rows: int) -> None:
        self._texts: list[list[int] | None] = [None] * num_rows
        self._cache: DynamicCache | None = None
        self._lean: LeanDecoder | None = None
        self._mask = torch.zeros((num_rows, 0), dtype=torch.bool, device=self._module.device)

    @abstractmethod
    def _forward(self, inputs: Mapping[str, Any]) -> Output:
        """Run the model, and record its attention if that is wanted."""

    @abstractmethod
    def _remember(self, done: Pass) -> None:
        """Store the results of a pass."""

    @abstractmethod
    def _drop_ends(self, rows: Tensor, lengths: Tensor) -> None:
        """Drop stored results for tokens beyond these lengths, both (num_rows,)."""

    @abstractmethod
    def _newest(self) -> Tensor:
        """Stored results for the newest token of each row, shape (batch, ...)."""

    def forget(self) -> None:
        """Drop the cache and all results, as needed after the model has changed."""
        LeanDecoder.discard(self._module)
        self._forget(0)

    @torch.no_grad()
    def advance(self, texts: Sequence[Text | None]) -> None:
        """Bring every row to its current text, in at most three forward passes.

        Args:
            texts: Token ids per row; None for a row that is not requested, which stays as it is. If
                the number of rows changes, everything is read from the start.

        Raises:
            InvalidArgumentError: If a text is empty.
        """
        if len(texts) != len(self._texts):
            self._forget(len(texts))
        grown: dict[int, list[int]] = {}
        changed: dict[int, list[int]] = {}
        restarted: dict[int, list[int]] = {}
        num_changed = 0
        for row, (text, known) in enumerate(zip(texts, self._texts, strict=True)):
            if text is None or (ids := list(text)) == known:
                continue
            if not ids:
                raise InvalidArgumentError("texts", texts, f"row {row} has no token to read")
            if not self._keeps:
                restarted[row] = ids
            elif ids[:-1] == known:
                grown[row] = ids
            elif (number := self._num_new(ids, known)) <= min(self._max_changed, len(ids) - 1):
                changed[row] = ids
                num_changed = max(num_changed, number)
            else:
                restarted[row] = ids
        for row in [row for row, ids in changed.items() if len(ids) <= num_changed]:
            restarted[row] = changed.pop(row)
        if not (grown or changed or restarted):
            return
        try:
            if grown:
                self._append(grown, 1)
            if changed:
                self._shorten({row: len(ids) - num_changed for row, ids in changed.items()})
                self._append(changed, num_changed)
            if restarted:
                self._restart(restarted)
        except BaseException:  # Some layers may have been extended and others not.
            self._forget(len(texts))
            raise
        self._crop()

    def _num_new(self, ids: list[int], known: list[int] | None) -> int:
        """Number of tokens after those that two texts share; at least 1, the last is read anew."""
        if known is None or not self._max_changed:
            return len(ids)  # Nothing is kept, whatever they share.
        differs = (n for n, (new, old) in enumerate(zip(ids, known, strict=False)) if new != old)
        return len(ids) - min(next(differs, len(known)), len(ids) - 1)

    def _shorten(self, kept: Mapping[int, int]) -> None:
        """Forget the last tokens of some texts, so that they have at most these numbers of tokens.

        The rows' keys and values are rotated, so that a text ends in the last column again. What
        comes to the left end is masked.
        """
        assert self._cache is not None
        rows, lengths = self._tensor(list(kept)), self._tensor(list(kept.values()))
        dropped = self._tensor([len(self._texts[row] or []) for row in kept]) - lengths
        columns = torch.arange(self._mask.shape[1], device=rows.device)
        order = (columns - dropped[:, None]) % len(columns)
        for layer in layers_of(self._cache):
            for states in (layer.keys, layer.values):
                states[rows] = states[rows].take_along_dim(order[:, None, :, None], dim=2)
        self._mask[rows] = columns >= len(columns) - lengths[:, None]
        self._drop_ends(rows, lengths)

    def _append(self, texts: Mapping[int, list[int]], number: int) -> None:
        """Read the last tokens of some texts, so many of each.

        Waiting rows are fed tokens that are then masked.
        """
        assert self._cache is not None
        rows = self._tensor(list(texts))
        lengths = self._tensor([len(text) for text in texts.values()])
        # Waiting rows use position 0, which every model has.
        shape = (2, len(self._texts), number)
        ids, positions = torch.zeros(shape, dtype=torch.int64, device=rows.device)
        ids[rows] = self._tensor([text[-number:] for text in texts.values()])
        positions[rows] = lengths[:, None] - torch.arange(number, 0, -1, device=rows.device)
        mask = pad(self._mask, (0, number), value=True)
        if self._lean is not None and number == 1:
            output = self._lean.read(ids[:, 0], positions[:, 0], mask, layers_of(self._cache))
        else:
            output = self._run(ids, mask, positions, self._cache, restart=None)
        waiting = torch.ones_like(mask[:, 0])
        waiting[rows] = False
        mask[waiting, -number:] = False
        self._mask = mask
        if waiting.any():
            self._mask[waiting] = mask[waiting].roll(number, dims=1)
            for layer in layers_of(self._cache):
                layer.keys[waiting] = layer.keys[waiting].roll(number, dims=2)
                layer.values[waiting] = layer.values[waiting].roll(number, dims=2)
        self._done(texts, Pass(rows, rows, lengths, number, output))

    def _restart(self, texts: Mapping[int, list[int]]) -> None:
        """Read whole texts, and store their keys and values at the right end of their rows."""
        rows = self._tensor(list(texts))
        lengths = self._tensor([len(text) for text in texts.values()])
        width = int(lengths.max())
        columns = torch.arange(width, device=rows.device)
        ids = self._tensor([text + [0] * (width - len(text)) for text in texts.values()])
        mask = columns < lengths[:, None]  # Padded on the right, so every query has a key.
        cache = DynamicCache() if self._keeps else None
        positions = columns.repeat(len(texts), 1)
        output = self._run(ids, mask, positions, cache, restart=lengths)
        if cache is not None:
            self._keep(cache, rows, lengths, mask)
        at = torch.arange(len(rows), device=rows.device)
        self._done(texts, Pass(rows, at, lengths, None, output))

    def _keep(self, cache: DynamicCache, rows: Tensor, lengths: Tensor, mask: Tensor) -> None:
        """Store keys and values of whole texts, padded on the right, at the right end of rows."""
        width = mask.shape[1]
        missing = max(0, width - self._mask.shape[1])
        self._mask = pad(self._mask, (missing, 0), value=False)
        start = self._mask.shape[1] - width
        self._mask[rows] = False
        self._mask[rows, start:] = mask.flip(1)
        # Of the last `width` columns, column c gets token c - (width - length) of the text.
        columns = torch.arange(width, device=rows.device)
        order = (columns - (width - lengths)[:, None]).clamp(min=0)[:, None, :, None]
        if self._cache is None:
            self._lean = LeanDecoder.of(self._module) if self._can_be_lean else None
            self._cache = self._empty_like(cache)
        for kept, new in zip(layers_of(self._cache), layers_of(cache), strict=True):
            kept.resize(missing)
            for mine, theirs in ((kept.keys, new.keys), (kept.values, new.values)):
                mine[rows, :, start:] = theirs.take_along_dim(order, dim=2).to(mine.dtype)

    def _empty_like(self, cache: DynamicCache) -> DynamicCache:
        """An empty cache for the whole batch, with the sizes of another one."""
        if not cache.layers or not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise TypeError("it caches something other than keys and values")
        empty = DynamicCache()
        dtype = None if self._lean is None else self._lean.cache_dtype  # None: as it is
        empty.layers = [
            GrowingLayer(layer.keys.to(dtype), layer.values.to(dtype), len(self._texts))
            for layer in layers_of(cache)
        ]
        return empty

    def _crop(self) -> None:
        """Cut the columns on the left that no row uses."""
        if self._cache is None:
            return
        unused = self._mask.shape[1] - max(len(text) for text in self._texts if text is not None)
        self._mask = self._mask[:, unused:]
        for layer in layers_of(self._cache):
            layer.resize(-unused)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: DynamicCache | None,
        restart: Tensor | None,
    ) -> Output:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        if cache is not None:
            inputs |= {"past_key_values": cache, "use_cache": True}
        elif "use_cache" in self._parameters:
            inputs["use_cache"] = False
        if "position_ids" in self._parameters:
            inputs["position_ids"] = positions + self._first_position
        return self._forward(inputs | self._further_inputs(restart))

    def _further_inputs(self, restart: Tensor | None) -> dict[str, Any]:
        """Further keyword arguments of the model.

        Args:
            restart: Lengths of the texts if whole texts are read, shape (num_read,); else None.
        """
        return {}

    def _done(self, texts: Mapping[int, list[int]], done: Pass) -> None:
        self._remember(done)
        for row, text in texts.items():
            self._texts[row] = text

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._module.device)

    def _fault(self) -> str | None:
        """How reading in pieces differs from what the model itself says of whole texts.

        Returns:
            None if it does not.

        Raises:
            InvalidArgumentError: If the architecture is sound, and the precision too low.
        """
        device = self._module.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        # Autocast would hide a wrong architecture behind its rounding.
        off = torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext()
        try:
            with off:
                differences = [(self._difference(), self._module.dtype)]
            if autocast is not None:
                differences.append((self._difference(), autocast))
        except Exception as error:  # Models of all kinds fail in all kinds of ways.
            return first_line(error)
        finally:
            self._forget(0)
        return next(filter(None, itertools.starmap(self._judge, differences)), None)

    def _difference(self) -> float:
        """Largest difference between reading in pieces and the model, by the largest value."""
        long, short = example_texts(self._module)
        self._forget(2)
        if self._max_changed > 0:
            self.advance([[*long[:-3], *short[:2]], long])  # Its last tokens will change.
        self.advance([long[:-2], long])
        self.advance([long[:-1], None])  # One row waits,
        self.advance([long, short])  # and then starts anew.
        in_pieces = self._newest()
        expected = torch.stack([self._by_the_model_itself(text) for text in (long, short)])
        difference, largest = (in_pieces - expected).abs().max(), expected.abs().max()
        if not self._keeps:  # Does it look ahead? In pieces, it could not.
            before = self._by_the_model_itself(long, 2) - self._by_the_model_itself(long[:2])
            difference = torch.maximum(difference, before.abs().max())
        return float(difference / largest) if difference != 0 else 0.0  # A new head may be zero.

    @torch.no_grad()
    def _by_the_model_itself(self, text: list[int], number: int | None = None) -> Tensor:
        """What the model says after some tokens of a text, if it is given the text and no more.

        Args:
            text: Token ids.
            number: After so many of them; None: after all.
        """
        self._forget(1)
        known = text[:number]
        row, length = self._tensor([0]), self._tensor([len(known)])
        inputs = {"input_ids": self._tensor([text])} | self._further_inputs(length)
        self._done({0: known}, Pass(row, row, length, None, self._forward(inputs)))
        return self._newest()[0]

    def _judge(self, difference: float, dtype: torch.dtype) -> str | None:
        """Say what is wrong if rounding in this dtype does not explain a difference; NaN is one."""
        tolerance = largest_rounding(self._module, dtype)
        if difference <= tolerance:
            return None
        measured = f"reading in pieces differs from reading at once by {difference:.2g}"
        if torch.finfo(dtype).bits >= 32:
            return f"{measured} of the largest value"
        name = str(dtype).removeprefix("torch.")
        raise InvalidArgumentError(
            "model",
            type(self._module).__name__,
            f"computed in {name}, {measured} of the largest value, and rounding explains at most "
            f"{tolerance:.2g}; compute in float32, and if that fails too, pass a decoder with "
            "attention in every layer",
        )
