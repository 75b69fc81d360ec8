"""Which attention kernel a model runs on, and a faster one for processors.

PyTorch's fused kernel is slow on processors in two cases that are a policy's daily work, both
measured in docs/performance.md: from one query, as in sampling with a cache, where two products of
matrices are faster; and in bfloat16 while texts are short, most of all in the backward pass, where
float32 is faster although the states are converted there and back.
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
_LONGEST = 256  # tokens; beyond, the fused kernel in bfloat16 is the faster one of the two


class AttentionSwitch:
    """A context in which a model runs on another attention kernel; then its own is put back.

    Args:
        model: The model.
        implementation: Name of the kernel in transformers' attention interface.

    Raises:
        ValueError: If the class of the model does not support it.
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

    A model that was loaded with another choice of attention than PyTorch's fused one keeps it.

    Args:
        model: The model; after the context it is as it was.
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
    """Attention in the way that is fastest where it runs.

    On a processor, from one query: in float32, as products of matrices. On a processor, in bfloat16
    and up to 256 tokens: PyTorch's fused attention in float32. Anything else is left to the
    library. Arguments and result are those of transformers' attention functions; the result has the
    dtype that the library's would have.
    """
    device = query.device.type
    # Under autocast the queries may come in float32: the kernel would be given them in bfloat16.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    from_one = query.shape[2] == 1 and _is_plain(attention_mask, kwargs)
    is_short = dtype == torch.bfloat16 and key.shape[2] <= _LONGEST
    if device != "cpu" or not (from_one or is_short):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    states = query.float(), key.float(), value.float()
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(device, enabled=False):  # It would bring all of them back to bfloat16.
        if from_one:
            output = _attend_from_one(*states, attention_mask, kwargs.get("scaling"))
        else:
            output, _ = sdpa_attention_forward(module, *states, attention_mask, **kwargs)
    return output.to(dtype), None


AttentionInterface.register(_IMPLEMENTATION, fast_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, sdpa_mask)


def _is_plain(mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether there is nothing but a mask for all heads in it."""
    return (
        (mask is None or mask.shape[1] == 1)
        and not kwargs.get("dropout")
        and kwargs.get("position_bias") is None
    )


def _attend_from_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """softmax(q·kᵀ/√d)·v (Vaswani et al., 2017, equation 1) for one query per text.

    Args:
        query: Shape (batch, num_heads, 1, head_dim).
        key: Shape (batch, num_key_value_heads, num_keys, head_dim); each serves a group of heads.
        value: Likewise; its head_dim may be another one.
        mask: Boolean (True may attend) or additive, shape (batch or 1, 1, 1, num_keys or more).
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
