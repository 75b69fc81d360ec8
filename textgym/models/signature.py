"""What a model's forward pass takes."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["forward_parameters"]


def forward_parameters(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's ``forward``.

    A wrapper such as ``peft.PeftModel`` hides them behind ``**kwargs`` and passes all of them on,
    so they are those of the model inside.

    Args:
        model: A module.
    """
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inside.forward).parameters)
