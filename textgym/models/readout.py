"""Attention of chosen layers and positions, without materialising all attention maps.

``output_attentions=True`` makes transformers fall back to the eager kernel and build the map of
every layer. Here the model keeps PyTorch's fused kernel; an attention function that is registered
with transformers' attention interface only remembers the queries and keys that pass through it.
After the forward pass, those of a layer give the wanted row by one product and one softmax.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from textgym.models.readouts import Heads, Layers, layer_indices

__all__ = ["AttentionRecorder", "RecordedAttention", "attention_rows"]

_IMPLEMENTATION = "textgym_recording_sdpa"


@dataclass(frozen=True)
class _Call:
    """The tensors of one attention call of a forward pass; references, not copies."""

    query: Tensor  # (batch, num_heads, num_tokens, head_dim)
    key: Tensor  # (batch, num_key_value_heads, num_tokens, head_dim)
    mask: Tensor | None  # (batch or 1, heads or 1, num_tokens, num_tokens)
    scaling: float | None
    is_causal: bool


# The calls of the forward pass under way, first layer first; the last layer alone where no other
# one is wanted, so that the others' tensors can be freed.
_calls: ContextVar[deque[_Call] | None] = ContextVar("textgym_attention_calls", default=None)


def _recording_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    calls = _calls.get()
    if calls is not None:
        if kwargs.get("position_bias") is not None:
            raise NotImplementedError("attention with a position bias is not recorded")
        is_causal = kwargs.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        calls.append(_Call(query, key, attention_mask, kwargs.get("scaling"), is_causal))
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

    The formula is softmax(q·k / sqrt(d)) (Vaswani et al., 2017, equation 1), for the chosen query
    positions only. Key heads that serve several query heads (grouped-query attention) are read in
    groups, not copied.

    With a key-value cache there are more keys than queries: num_keys of them, the cached ones
    first. Without one, num_keys is num_tokens.

    Args:
        query: Queries after rotary embedding, shape (batch, num_heads, num_tokens, head_dim).
        key: Keys, shape (batch, num_key_value_heads, num_keys, head_dim).
        mask: None, or what the attention kernel received: shape (batch or 1, num_heads or 1,
            num_tokens, num_keys), boolean (True may attend) or additive.
        scaling: Factor on the products; None for 1 / sqrt(head_dim).
        is_causal: Whether ``mask=None`` means that a token attends to itself and earlier ones.
        positions: One query position per sequence, shape (batch,), int64; None for all of them.
        heads: How the heads are reduced to one.

    Returns:
        float32 weights, shape (batch, num_keys), or (batch, num_tokens, num_keys) for all
        positions.
    """
    batch, num_heads, num_tokens, head_dim = query.shape
    num_cached = key.shape[2] - num_tokens
    if positions is None:
        at = torch.arange(num_tokens, device=query.device).expand(batch, -1)
    else:
        at = positions[:, None]  # (batch, 1)
    rows = torch.arange(batch, device=query.device)[:, None]
    chosen = query[rows, :, at].float()  # (batch, num_positions, num_heads, head_dim)
    key_heads = key.shape[1]
    grouped = chosen.unflatten(2, (key_heads, num_heads // key_heads))
    logits = torch.einsum("bpkgd,bktd->bpkgt", grouped, key.float()).flatten(2, 3)
    logits = logits * (head_dim**-0.5 if scaling is None else scaling)
    if mask is not None:
        chosen_mask = mask.expand(batch, -1, -1, -1)[rows, :, at][..., : key.shape[2]]
        if mask.dtype == torch.bool:
            logits = logits.masked_fill(~chosen_mask, -torch.inf)
        else:
            logits = logits + chosen_mask
    elif is_causal:
        later = torch.arange(key.shape[2], device=query.device) > at[..., None] + num_cached
        logits = logits.masked_fill(later[:, :, None], -torch.inf)
    # A query in the padding may attend to nothing at all: its row is zero, not NaN.
    weights = _reduce_heads(logits.softmax(dim=-1).nan_to_num(0.0), heads, dim=2)
    return weights if positions is None else weights[:, 0]


def _reduce_heads(weights: Tensor, heads: Heads, dim: int) -> Tensor:
    if heads == "mean":
        return weights.mean(dim)
    if heads == "max":
        return weights.amax(dim)
    return weights.select(dim, int(heads))


class RecordedAttention:
    """The attention of one forward pass, computed when it is asked for.

    Args:
        layers: Per recorded layer, first to last, a function of the positions and the heads that
            gives weights as :func:`attention_rows` does.
    """

    def __init__(self, layers: Sequence[Callable[[Tensor | None, Heads], Tensor]]) -> None:
        self._layers = layers

    def __len__(self) -> int:
        return len(self._layers)

    @torch.no_grad()
    def weights(self, layers: Layers, heads: Heads, positions: Tensor | None = None) -> Tensor:
        """Attention weights.

        Args:
            layers: The layer, or several, whose mean is taken.
            heads: How the heads are reduced.
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
    """Reads the attention of a model while it runs.

    The model's own choice of attention kernel is put back after each use, so a model that the
    caller owns is left as it was. Models outside transformers' attention interface fall back to
    ``output_attentions=True``, with one warning.

    Args:
        model: The model whose attention is wanted.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._recording = self._switch_plan(_IMPLEMENTATION) if self._can_record() else None
        self._eager = self._switch_plan("eager") if self._recording is None else None
        if self._recording is None:
            warnings.warn(
                f"{type(model).__name__} is not on transformers' attention interface; its "
                "attention is read with output_attentions=True, which is slower and takes more "
                "memory",
                stacklevel=2,
            )

    @property
    def is_fused(self) -> bool:
        """Whether the model keeps its fused kernel; False where the eager maps are read."""
        return self._recording is not None

    def _can_record(self) -> bool:
        if not self._model._can_set_attn_implementation():
            return False
        try:
            plan = self._switch_plan(_IMPLEMENTATION)
        except (ValueError, ImportError):  # The model's class does not support sdpa.
            return False
        probe = torch.zeros((1, 2), dtype=torch.int64, device=self._model.device)
        calls: deque[_Call] = deque(maxlen=1)
        with torch.no_grad(), self._switched(plan), self._recorded(calls):
            try:
                self._model.base_model(input_ids=probe, attention_mask=torch.ones_like(probe))
            except (NotImplementedError, ValueError):  # A bias or soft cap the kernel cannot take.
                return False
        return bool(calls)

    def _switch_plan(self, implementation: str) -> list[tuple[Any, str]]:
        """Which configs of the model must be changed to run on this kernel, and to what."""
        configs: dict[int, Any] = {
            id(module.config): module.config
            for module in self._model.modules()
            if hasattr(module, "config")
        }
        before = [(config, config._attn_implementation_internal) for config in configs.values()]
        try:
            if self._model._can_set_attn_implementation():
                self._model.set_attn_implementation(implementation)
            return [(config, config._attn_implementation_internal) for config, _ in before]
        finally:
            for config, value in before:
                config._attn_implementation_internal = value

    @staticmethod
    @contextmanager
    def _switched(plan: list[tuple[Any, str]]) -> Iterator[None]:
        before = [(config, config._attn_implementation_internal) for config, _ in plan]
        for config, value in plan:
            config._attn_implementation_internal = value
        try:
            yield
        finally:
            for config, value in before:
                config._attn_implementation_internal = value

    @staticmethod
    @contextmanager
    def _recorded(calls: deque[_Call]) -> Iterator[None]:
        token = _calls.set(calls)
        try:
            yield
        finally:
            _calls.reset(token)

    def run(
        self, module: nn.Module, inputs: Mapping[str, Tensor], last_layer_only: bool = True
    ) -> tuple[Any, RecordedAttention]:
        """Run a forward pass and return its output with its attention.

        Args:
            module: The model itself or its base model.
            inputs: Keyword arguments of its forward.
            last_layer_only: Whether to keep no other layer's tensors: less memory.

        Returns:
            The module's output, and the attention of the last layer or of all layers.
        """
        if self._eager is not None:
            with self._switched(self._eager):
                output = module(**inputs, output_attentions=True)
            maps = output.attentions[-1:] if last_layer_only else output.attentions
            return output, RecordedAttention([partial(_eager_rows, one) for one in maps])
        assert self._recording is not None
        calls: deque[_Call] = deque(maxlen=1 if last_layer_only else None)
        with self._switched(self._recording), self._recorded(calls):
            output = module(**inputs)
        return output, RecordedAttention([partial(_recorded_rows, call) for call in calls])


def _recorded_rows(call: _Call, positions: Tensor | None, heads: Heads) -> Tensor:
    return attention_rows(
        call.query, call.key, call.mask, call.scaling, call.is_causal, positions, heads
    )


def _eager_rows(attention: Tensor, positions: Tensor | None, heads: Heads) -> Tensor:
    weights = _reduce_heads(attention.float(), heads, dim=1)  # (batch, num_tokens, num_tokens)
    if positions is None:
        return weights
    return weights[torch.arange(len(weights), device=weights.device), positions]
