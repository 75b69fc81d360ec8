"""Record the attention of chosen layers and positions, without building all attention maps.

``output_attentions=True`` makes transformers fall back to the eager kernel and build the map of
every layer. Here the model keeps PyTorch's fused kernel. An attention function registered with
transformers' attention interface sees the queries and keys that pass through it. If one row per
text is wanted, it computes that row at once, by one product and one softmax, and keeps nothing
else. For whole maps it keeps queries and keys until the forward pass is over.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from textgym.models.checks import check_model
from textgym.models.kernels import AttentionSwitch
from textgym.models.readouts import Heads, Layers, layer_indices

__all__ = ["AttentionRecorder", "RecordedAttention", "attention_rows"]

_IMPLEMENTATION = "textgym_recording_sdpa"


@dataclass(frozen=True)
class _Call:
    """Arguments of one attention call in a forward pass; references, not copies."""

    query: Tensor  # (batch, num_heads, num_tokens, head_dim)
    key: Tensor  # (batch, num_key_value_heads, num_tokens, head_dim)
    mask: Tensor | None  # (batch or 1, heads or 1, num_tokens, num_tokens)
    scaling: float | None
    is_causal: bool


_Weights = Callable[[Tensor | None, Heads], Tensor]
"""Maps positions and heads to weights, as :func:`attention_rows` does."""


@dataclass
class _Recording:
    """What is recorded of the attention calls of one forward pass.

    Attributes:
        skip: Number of calls to ignore: all but the last if only the last layer is wanted.
        positions: The one wanted query position of each sequence, shape (batch,); None if all
            positions are wanted.
        layers: The recorded layers, first to last.
        num_calls: Number of calls so far.
    """

    skip: int
    positions: Tensor | None
    layers: list[_Weights] = field(default_factory=list)
    num_calls: int = 0

    def add(self, call: _Call) -> None:
        self.num_calls += 1
        if self.num_calls <= self.skip:
            return
        if self.positions is None:
            self.layers.append(partial(_recorded_rows, call))
        else:
            # Keeping queries and keys would often keep one large tensor that they are views of.
            with torch.no_grad():
                weights = _head_weights(call, self.positions[:, None])[:, 0]
            self.layers.append(partial(_computed_rows, weights))


_recording: ContextVar[_Recording | None] = ContextVar("textgym_attention", default=None)


def _recording_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    recording = _recording.get()
    if recording is not None:
        if kwargs.get("position_bias") is not None:
            raise NotImplementedError("attention with a position bias is not recorded")
        is_causal = kwargs.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        recording.add(_Call(query, key, attention_mask, kwargs.get("scaling"), is_causal))
    # Not fast_sdpa: a read-out must not change the score, not even in the last bit.
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _recording_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, sdpa_mask)


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    is_causal: bool,
    positions: Tensor | None = None,
    heads: Heads = "mean",
) -> Tensor:
    """Attention weights of one layer.

    Computes softmax(q·k / sqrt(d)) (Vaswani et al., 2017, equation 1) for the chosen query
    positions only. Key heads shared by several query heads (grouped-query attention) are read in
    groups, not copied.

    With a key-value cache there are more keys than queries: num_keys, the cached ones first.
    Without a cache, num_keys equals num_tokens.

    Args:
        query: Queries after rotary embedding, shape (batch, num_heads, num_tokens, head_dim).
        key: Keys, shape (batch, num_key_value_heads, num_keys, head_dim).
        mask: The mask that the attention kernel received: boolean (True means attend) or additive,
            shape (batch or 1, num_heads or 1, num_tokens, num_keys); or None.
        scaling: Factor on the products; None for 1 / sqrt(head_dim).
        is_causal: Whether, with ``mask=None``, a token attends to itself and earlier ones only.
        positions: One query position per sequence, shape (batch,), int64; None for all positions.
        heads: How to reduce the heads to one.

    Returns:
        float32 weights, shape (batch, num_keys), or (batch, num_tokens, num_keys) for all
        positions.
    """
    at = torch.arange(query.shape[2], device=query.device).expand(len(query), -1)
    if positions is not None:
        at = positions[:, None]
    weights = _head_weights(_Call(query, key, mask, scaling, is_causal), at)
    weights = _reduce_heads(weights, heads, dim=2)
    return weights if positions is None else weights[:, 0]


def _head_weights(call: _Call, at: Tensor) -> Tensor:
    """Attention of every head at the positions ``at``, shape (batch, num_positions).

    Returns:
        float32, shape (batch, num_positions, num_heads, num_keys).
    """
    batch, num_heads, num_tokens, head_dim = call.query.shape
    key_heads, num_keys = call.key.shape[1:3]
    rows = torch.arange(batch, device=at.device)[:, None]
    chosen = call.query[rows, :, at].float()  # (batch, num_positions, num_heads, head_dim)
    grouped = chosen.unflatten(2, (key_heads, num_heads // key_heads))
    logits = torch.einsum("bpkgd,bktd->bpkgt", grouped, call.key.float()).flatten(2, 3)
    logits = logits * (head_dim**-0.5 if call.scaling is None else call.scaling)
    if call.mask is not None:
        chosen_mask = call.mask.expand(batch, -1, -1, -1)[rows, :, at][..., :num_keys]
        if chosen_mask.dtype == torch.bool:
            logits = logits.masked_fill(~chosen_mask, -torch.inf)
        else:
            logits = logits + chosen_mask
    elif call.is_causal:
        num_cached = num_keys - num_tokens
        later = torch.arange(num_keys, device=at.device) > at[..., None] + num_cached
        logits = logits.masked_fill(later[:, :, None], -torch.inf)
    # A query in the padding may have no key to attend to. Its row is 0, not NaN.
    return logits.softmax(dim=-1).nan_to_num(0.0)


def _reduce_heads(weights: Tensor, heads: Heads, dim: int) -> Tensor:
    if heads == "mean":
        return weights.mean(dim)
    if heads == "max":
        return weights.amax(dim)
    return weights.select(dim, int(heads))


class RecordedAttention:
    """The attention of one forward pass, computed on request.

    Args:
        layers: For each recorded layer, first to last, a function from positions and heads to
            weights, as :func:`attention_rows` returns them.
    """

    def __init__(self, layers: Sequence[_Weights]) -> None:
        self._layers = layers

    @classmethod
    def of_newest(cls, weights: Sequence[Tensor]) -> RecordedAttention:
        """The attention of a pass that read one token per text.

        Args:
            weights: Of each layer, float32, shape (batch, num_heads, num_keys).
        """
        return cls([partial(_newest_rows, one) for one in weights])

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def weights(self, layers: Layers, heads: Heads, positions: Tensor | None = None) -> Tensor:
        """Attention weights.

        Args:
            layers: A layer, or a tuple of layers to average over.
            heads: How to reduce the heads.
            positions: One query position per sequence, shape (batch,), int64; None for all.

        Returns:
            float32, shape (batch, num_tokens), or (batch, num_tokens, num_tokens) for all
            positions.
        """
        indices = layer_indices(layers)
        total = self._layers[indices[0]](positions, heads)
        for index in indices[1:]:
            total = total + self._layers[index](positions, heads)
        return total / len(indices)


class AttentionRecorder:
    """Records the attention of a model during a forward pass.

    After each use the model gets its own attention kernel back, so the caller's model is left as it
    was. Models outside transformers' attention interface fall back to ``output_attentions=True``,
    with one warning.

    Args:
        model: The model to record.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        check_model("model", model)
        self._model = model
        self._num_calls = 0
        self._recording = AttentionSwitch(model, _IMPLEMENTATION) if self._can_record() else None
        self._eager = AttentionSwitch(model, "eager") if self._recording is None else None
        if self._recording is None:
            warnings.warn(
                f"{type(model).__name__} is not on transformers' attention interface; its "
                "attention is read with output_attentions=True, which is slower and takes more "
                "memory",
                stacklevel=2,
            )

    @property
    def is_fused(self) -> bool:
        """Whether the model keeps its fused kernel; False if eager maps are read."""
        return self._recording is not None

    def _can_record(self) -> bool:
        if not self._model._can_set_attn_implementation():
            return False
        try:
            switch = AttentionSwitch(self._model, _IMPLEMENTATION)
        except (ValueError, ImportError):  # the model's class does not support sdpa
            return False
        probe = torch.zeros((1, 2), dtype=torch.int64, device=self._model.device)
        recording = _Recording(skip=0, positions=None)
        with torch.no_grad(), switch, self._recorded(recording):
            try:
                self._model.base_model(input_ids=probe, attention_mask=torch.ones_like(probe))
            except (NotImplementedError, ValueError):  # a bias or soft cap
                return False
        self._num_calls = recording.num_calls
        return self._num_calls > 0

    @staticmethod
    @contextmanager
    def _recorded(recording: _Recording) -> Iterator[None]:
        token = _recording.set(recording)
        try:
            yield
        finally:
            _recording.reset(token)

    def run(
        self,
        module: nn.Module,
        inputs: Mapping[str, Any],
        last_layer_only: bool = True,
        positions: Tensor | None = None,
    ) -> tuple[Any, RecordedAttention]:
        """Run a forward pass, and record its attention.

        Args:
            module: The model itself or its base model.
            inputs: Keyword arguments of its forward.
            last_layer_only: Whether to record the last layer only, which takes less memory.
            positions: The one query position per sequence that will be requested, shape (batch,),
                which takes hardly any memory. None allows all positions.

        Returns:
            The module's output, and the attention of the last layer or of all layers.
        """
        if self._eager is not None:
            with self._eager:
                output = module(**inputs, output_attentions=True)
            maps = output.attentions[-1:] if last_layer_only else output.attentions
            return output, RecordedAttention([partial(_eager_rows, one) for one in maps])
        assert self._recording is not None
        recording = _Recording(self._num_calls - 1 if last_layer_only else 0, positions)
        with self._recording, self._recorded(recording):
            output = module(**inputs)
        return output, RecordedAttention(recording.layers)


def _recorded_rows(call: _Call, positions: Tensor | None, heads: Heads) -> Tensor:
    return attention_rows(
        call.query, call.key, call.mask, call.scaling, call.is_causal, positions, heads
    )


def _computed_rows(weights: Tensor, positions: Tensor | None, heads: Heads) -> Tensor:
    assert positions is not None, "only the positions passed to run() were recorded"
    return _reduce_heads(weights, heads, dim=1)


def _newest_rows(weights: Tensor, positions: Tensor | None, heads: Heads) -> Tensor:
    assert positions is None, "only the newest token's row was recorded"
    return _reduce_heads(weights, heads, dim=1)[:, None]


def _eager_rows(attention: Tensor, positions: Tensor | None, heads: Heads) -> Tensor:
    weights = _reduce_heads(attention.float(), heads, dim=1)  # (batch, num_tokens, num_tokens)
    if positions is None:
        return weights
    return weights[torch.arange(len(weights), device=weights.device), positions]
