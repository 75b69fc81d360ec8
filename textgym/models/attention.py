"""Attention in float32, for policies that compute in bfloat16 on a processor.

PyTorch's fused kernel for processors loses by bfloat16 while texts are short, most of all in the
backward pass, even if the conversions there and back are counted. Both are measured in
docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

__all__ = ["use_float32_attention"]

_IMPLEMENTATION = "textgym_float32_sdpa"
_LONGEST = 256  # tokens; beyond, bfloat16 is the faster one of the two


def _float32_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    device = query.device.type
    # Under autocast the queries may come in float32: the kernel would be given them in bfloat16.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    if dtype != torch.bfloat16 or device != "cpu" or key.shape[2] > _LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    states = query.float(), key.float(), value.float()
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(device, enabled=False):  # It would bring all of them back to bfloat16.
        output, _ = sdpa_attention_forward(module, *states, attention_mask, **kwargs)
    return output.to(dtype), None


AttentionInterface.register(_IMPLEMENTATION, _float32_sdpa)
ALL_MASK_ATTENTION_FUNCTIONS.register(_IMPLEMENTATION, sdpa_mask)


def use_float32_attention(model: PreTrainedModel) -> None:
    """Let a model that uses PyTorch's fused attention use it in float32 where that is faster.

    A model with another kind of attention is left as it is. On other devices, and for more than
    256 tokens, nothing changes.

    Args:
        model: The model; its choice of attention is changed in place.
    """
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(_IMPLEMENTATION)
