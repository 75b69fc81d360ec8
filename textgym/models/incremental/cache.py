"""A key-value cache that grows without copying everything at each token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer", "layers_of"]


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in buffers with room for further columns.

    The library's own layer allocates new tensors and copies all columns for every token.

    Args:
        keys: Keys of another layer, used for their sizes, dtype and device, shape
            (any, num_heads, any, head_dim).
        values: Values of that layer; their sizes may differ from the keys'.
        batch_size: Number of rows. The new layer has no columns yet.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let keys and values be views of the buffers again, which a pickle does not tell."""
        vars(self).update(state)
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all keys and values, (batch, num_heads, num_columns, ...)."""
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
        """Add this many columns of zeros on the left, or remove columns if negative."""
        if more > 0:
            self._move(more, room=self._columns.stop - self._columns.start + more)
        self._columns = slice(max(0, self._columns.start - more), self._columns.stop)
        self._show()

    def _move(self, start: int, room: int) -> None:
        """Move the columns to new buffers of ``room`` columns, beginning at ``start``."""
        length = self._columns.stop - self._columns.start
        for i, old in enumerate(self._buffers):
            new = old.new_empty((*old.shape[:2], room, old.shape[3]))
            new[:, :, :start] = 0.0  # Masked, but NaN would spread.
            new[:, :, start : start + length] = old[:, :, self._columns]
            self._buffers[i] = new
        self._columns = slice(start, start + length)

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, self._columns] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def layers_of(cache: DynamicCache) -> list[Any]:
    """Layers of a cache, each with attributes ``keys`` and ``values``."""
    return list(cache.layers)
