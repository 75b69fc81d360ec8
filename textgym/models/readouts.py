"""What can be read out of a reward model besides the score.

An instance of one of these classes requests a read-out, and is the key of the result. For example,
``scored = reward_model.read(completions, [AttentionRow(layers=0)])`` computes
``scored[AttentionRow(layers=0)]``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from textgym.errors import InvalidArgumentError

__all__ = [
    "AttentionMap",
    "AttentionRow",
    "GradientTimesInput",
    "Heads",
    "LayerAttentionMaps",
    "Layers",
    "Pooling",
    "PrefixScores",
    "Readout",
    "checked_readouts",
    "layer_indices",
]

Layers = int | tuple[int, ...]
"""A layer, counted from 0 or, if negative, from the last; or a tuple of layers to average over."""

Heads = Literal["mean", "max"] | int
"""How to reduce the heads of a layer to one: mean, maximum, or the number of one head."""


@dataclass(frozen=True)
class PrefixScores:
    """Score of the text that ends at each token, shape (batch, num_tokens).

    Free for a decoder. An encoder needs one forward pass per prefix length.
    """


@dataclass(frozen=True)
class _Attention:
    """Attention of some layers, heads reduced."""

    layers: Layers = -1
    heads: Heads = "mean"

    def __post_init__(self) -> None:
        layer_indices(self.layers)
        _check_heads(self.heads)


class AttentionRow(_Attention):
    """Attention that the pooled position pays to every token, shape (batch, num_tokens).

    The pooled position is the one that the score is read from: the last token of a decoder, the
    first token of an encoder. If an encoder pools the mean of all positions, the row is the mean of
    their rows. With ``heads="mean"`` or a single head, a row sums to 1, prompt included.

    Args:
        layers: A layer, or a tuple of layers to average over.
        heads: How to reduce the heads.

    Raises:
        InvalidArgumentError: If ``layers`` or ``heads`` is not one of the choices above.
    """


class AttentionMap(_Attention):
    """Attention of every position to every token, shape (batch, num_tokens, num_tokens).

    Indexed [row, attending position, attended position].

    Args:
        layers: A layer, or a tuple of layers to average over.
        heads: How to reduce the heads.

    Raises:
        InvalidArgumentError: If ``layers`` or ``heads`` is not one of the choices above.
    """


@dataclass(frozen=True)
class LayerAttentionMaps:
    """Attention maps of all layers, first to last, (batch, num_layers, num_tokens, num_tokens).

    Args:
        heads: How to reduce the heads.

    Raises:
        InvalidArgumentError: If ``heads`` is not one of the choices above.
    """

    heads: Heads = "mean"

    def __post_init__(self) -> None:
        _check_heads(self.heads)


@dataclass(frozen=True)
class GradientTimesInput:
    """Gradient of the score with respect to each token's embedding, times that embedding.

    The product is summed over the components of the embedding, shape (batch, num_tokens). It costs
    a backward pass; the forward pass is the one that scores.
    """


@dataclass(frozen=True)
class Pooling:
    """Share of each position in the state that the score is read from, (batch, num_tokens).

    1 at the pooled position, or equal shares if an encoder pools the mean of all positions.
    """


Readout = (
    PrefixScores | AttentionRow | AttentionMap | LayerAttentionMaps | GradientTimesInput | Pooling
)
"""Any read-out; see the classes."""


def checked_readouts(readouts: Collection[Readout]) -> frozenset[Readout]:
    """Read-outs as a set.

    Raises:
        InvalidArgumentError: If they are no collection of read-outs.
    """
    is_collection = isinstance(readouts, Collection) and not isinstance(readouts, str | bytes)
    listed: list[object] = list(readouts) if is_collection else [readouts]
    for one in listed:
        if not isinstance(one, Readout):
            raise InvalidArgumentError(
                "readouts", one, "pass instances of the classes in textgym.models.readouts"
            )
    return frozenset(readouts)


def layer_indices(layers: Layers) -> tuple[int, ...]:
    """The layers as a tuple.

    Raises:
        InvalidArgumentError: If ``layers`` is neither a whole number nor a non-empty tuple of them.

    >>> layer_indices(-1), layer_indices((0, 2))
    ((-1,), (0, 2))
    """
    indices = layers if isinstance(layers, tuple) else (layers,)
    if not indices or not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
        raise InvalidArgumentError(
            "layers", layers, "pass the number of a layer (-1 is the last), or a tuple of numbers"
        )
    return indices


def _check_heads(heads: Heads) -> None:
    is_head = isinstance(heads, int) and not isinstance(heads, bool) and heads >= 0
    if not is_head and heads not in ("mean", "max"):
        raise InvalidArgumentError(
            "heads", heads, 'pass "mean", "max" or the number of a head, counted from 0'
        )
