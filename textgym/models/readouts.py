"""What can be read out of a reward model besides the score.

A read-out is asked for by a value of one of these classes, and the answer is found under the same
value: ``scored = reward_model.read(completions, [AttentionRow(layers=0)])`` computes what
``scored[AttentionRow(layers=0)]`` then gives.
"""

from __future__ import annotations

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
    "layer_indices",
]

Layers = int | tuple[int, ...]
"""A layer, counted from 0 or, if negative, from the last; or several, whose mean is taken."""

Heads = Literal["mean", "max"] | int
"""How the heads of a layer are reduced to one: their mean, their maximum, or one of them."""


@dataclass(frozen=True)
class PrefixScores:
    """Score of the text that ends at each token, shape (batch, num_tokens).

    Free for a decoder; for an encoder every prefix is a forward pass.
    """


@dataclass(frozen=True)
class _Attention:
    """Attention of some layers, with the heads reduced."""

    layers: Layers = -1
    heads: Heads = "mean"

    def __post_init__(self) -> None:
        layer_indices(self.layers)
        _check_heads(self.heads)


class AttentionRow(_Attention):
    """Attention that the pooled position pays to every token, shape (batch, num_tokens).

    The pooled position is the one that the score is read from: the last token of a decoder, the
    first of an encoder. Where an encoder pools by the mean of all positions, so does the row. With
    the mean of heads, or one head, a row sums to 1, prompt included.

    Args:
        layers: The layer, or several, whose mean is taken.
        heads: How the heads are reduced.

    Raises:
        InvalidArgumentError: If an argument names no layer or no reduction.
    """


class AttentionMap(_Attention):
    """Attention of every position to every token, shape (batch, num_tokens, num_tokens).

    Indexed [row, position that attends, position attended to].

    Args:
        layers: The layer, or several, whose mean is taken.
        heads: How the heads are reduced.

    Raises:
        InvalidArgumentError: If an argument names no layer or no reduction.
    """


@dataclass(frozen=True)
class LayerAttentionMaps:
    """The maps of all layers, first to last, (batch, num_layers, num_tokens, num_tokens).

    Args:
        heads: How the heads are reduced.

    Raises:
        InvalidArgumentError: If ``heads`` names no reduction.
    """

    heads: Heads = "mean"

    def __post_init__(self) -> None:
        _check_heads(self.heads)


@dataclass(frozen=True)
class GradientTimesInput:
    """Gradient of the score by each token's embedding, times that embedding.

    The product is summed over the embedding's components, shape (batch, num_tokens). It takes a
    backward pass; the forward pass is the one that scores.
    """


@dataclass(frozen=True)
class Pooling:
    """Share of each position in what the score is read from, shape (batch, num_tokens).

    One at the pooled position, or equal shares where an encoder pools by the mean.
    """


Readout = (
    PrefixScores | AttentionRow | AttentionMap | LayerAttentionMaps | GradientTimesInput | Pooling
)
"""Anything that can be asked for; see the classes."""


def layer_indices(layers: Layers) -> tuple[int, ...]:
    """The layers as a tuple.

    Raises:
        InvalidArgumentError: If it is neither a whole number nor a tuple of at least one.

    >>> layer_indices(-1), layer_indices((0, 2))
    ((-1,), (0, 2))
    """
    indices = layers if isinstance(layers, tuple) else (layers,)
    if not indices or not all(isinstance(i, int) and not isinstance(i, bool) for i in indices):
        raise InvalidArgumentError(
            "layers", layers, "pass a layer's number, or a tuple of at least one; -1 is the last"
        )
    return indices


def _check_heads(heads: Heads) -> None:
    is_head = isinstance(heads, int) and not isinstance(heads, bool) and heads >= 0
    if not is_head and heads not in ("mean", "max"):
        raise InvalidArgumentError(
            "heads", heads, 'pass "mean", "max" or the number of a head, counted from 0'
        )
