"""Where the weights of a loaded model are, and whether they can be moved, cast and trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_on_one_device", "is_quantized"]

_PLAIN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool,
)  # fmt: skip
"""Dtypes of weights and buffers that are not packed."""


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a model holds packed weights, which can be neither moved at will, cast nor trained.

    A model that was dequantised when it was loaded, as GGUF files are by default, may still be
    marked as quantised. Its weights are plain numbers, so it does not count.

    Args:
        model: A loaded model.
    """
    if not getattr(model, "is_quantized", False):
        return False
    tensors = [*model.parameters(), *model.buffers()]
    return not all(one.dtype in _PLAIN and type(one.data) is Tensor for one in tensors)


def check_on_one_device(argument: str, model: PreTrainedModel) -> None:
    """Refuse a model that ``device_map`` has spread over devices, or in part left on a disk.

    Caches, read-outs and losses are computed where the whole model is.

    Args:
        argument: The argument that the error names.
        model: A loaded model.

    Raises:
        InvalidArgumentError: If its weights are not all on one device.
    """
    device_map: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    places = sorted({str(place) for place in device_map.values()})
    if len(places) > 1 or "disk" in places:
        raise InvalidArgumentError(
            argument,
            type(model).__name__,
            f"its device_map puts it on {' and '.join(places)}, and it must be on one device: load "
            'it with device_map={"": "cuda:0"}, quantised if it is too large for that',
        )
