"""Switching a model's attention kernel, and a kernel that is faster on CPUs.

PyTorch's fused kernel is slow on CPUs in two cases that a policy meets all the time (measurements
in docs/performance.md). With a single query, as in sampling with a cache, two matrix products are
faster. In bfloat16 with short texts, above all in the backward pass, float32 is faster even though
the states have to be converted both ways.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

__all__ = ["AttentionSwitch", "fast_attention", "fast_sdpa"]

_IMPLEMENTATION = "textgym_sdpa"
_LONGEST = 256  # tokens; for longer texts the fused kernel in bfloat16 is faster


class AttentionSwitch:
    """A context in which a model runs on another attention kernel. It may be nested.

    On exit, the model gets its previous kernel back.

    Args:
        model: The model.
        implementation: Name of the kernel in transformers' attention interface.

    Raises:
        ValueError: If the model's class does not support the kernel.
    """

    def __init__(self, model: PreTrainedModel, implementation: str) -> None:
        configs: dict[int, Any] = {
            id(module.config): module.config
            for module in model.modules()
            if hasattr(module, "config")
        }
        before = [(config, config._attn_implementation_internal) for config in configs.values()]
        try:
            if model._can_set_attn_implementation():
                model.set_attn_implementation(implementation)
            self._plan = [(config, config._attn_implementation_internal) for config, _ in before]
        finally:
            self._set(before)
        self._before: list[list[tuple[Any, str]]] = []

    def __enter__(self) -> None:
        self._before.append(
            [(config, config._attn_implementation_internal) for config, _ in self._plan]
        )
        self._set(self._plan)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._set(self._before.pop())

    @staticmethod
    def _set(plan: list[tuple[Any, str]]) -> None:
        for config, value in plan:
            config._attn_implementation_internal = value


def fast_attention(model: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """A context in which a model uses :func:`fast_sdpa`.

    A model loaded with a kernel other than PyTorch's fused one keeps that kernel.

    Args:
        model: The model. On exit it gets its previous kernel back.
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa":
        return contextlib.nullcontext()
    return AttentionSwitch(model, _IMPLEMENTATION)


def fast_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention by the fastest of three ways.

    - On a CPU, with a single query: matrix products in float32.
    - On a CPU, in bfloat16 and up to 256 tokens: PyTorch's fused attention in float32.
    - Otherwise: the library's own function.

    Arguments and result are those of transformers' attention functions. The result has the dtype
    that the library's function would return.
    """
    device = query.device.type
    # Under autocast, queries that arrive in float32 would be cast before they reach the kernel.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    from_one = query.shape[2] == 1 and _is_plain(attention_mask, kwargs)
    is_short = dtype == torch.bfloat16 and key.shape[2] <= _LONGEST
    if device != "cpu" or not (from_one or is_short):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    states = query.float(), key.float(), value.float()
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(device, enabled=False):  # It would cast them back to bfloat16.
        if from_one:
            output = _attend_from_one(*states, attention_mask, kwargs.get("scaling"))
        else:
            output, _ = sdpa_attention_forward(module, *states, attention_mask, **kwargs)
    return output.to(dtype), None


AttentionInterface.register(_IMPLEMENTATION, fast_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, sdpa_mask)


def _is_plain(mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether the attention is plain: at most a mask, the same for all heads."""
    return (
        (mask is None or mask.shape[1] == 1)
        and not kwargs.get("dropout")
        and kwargs.get("position_bias") is None
    )


def _attend_from_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """softmax(q·kᵀ/√d)·v for one query per text (Vaswani et al., 2017, equation 1).

    Args:
        query: Shape (batch, num_heads, 1, head_dim).
        key: Shape (batch, num_key_value_heads, num_keys, head_dim); each serves a group of heads.
        value: Shape (batch, num_key_value_heads, num_keys, value_dim).
        mask: Boolean (True means attend) or additive, (batch or 1, 1, 1, num_keys or more).
        scaling: Factor on the products; None for 1 / sqrt(head_dim).

    Returns:
        Shape (batch, 1, num_heads, head_dim).
    """
    batch, num_heads, _, head_dim = query.shape
    key_heads, num_keys = key.shape[1:3]
    scaled = query * (head_dim**-0.5 if scaling is None else scaling)
    logits = scaled.reshape(batch, key_heads, -1, head_dim) @ key.mT
    if mask is not None:
        mask = mask[..., :num_keys]
        is_boolean = mask.dtype == torch.bool
        logits = logits.masked_fill(~mask, -torch.inf) if is_boolean else logits + mask
    return (logits.softmax(dim=-1) @ value).reshape(batch, 1, num_heads, -1)
