"""Low-rank adapters on a language model, with the optional package ``peft``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textgym.errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

__all__ = ["add_lora"]


def add_lora(model: PreTrainedModel, lora: bool | LoraConfig) -> None:
    """Freeze a model and add adapters to it, in place (Hu et al. 2021, arXiv 2106.09685).

    The adapters start at zero, so the model still computes the same.

    Args:
        model: The model; its class does not change.
        lora: True for the defaults of ``peft``, which knows where adapters belong in common
            architectures; or a ``peft.LoraConfig``.

    Raises:
        MissingDependencyError: If ``peft`` is not installed.
        InvalidArgumentError: If ``lora`` is something else, or does not fit the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingDependencyError("peft", "lora", "training low-rank adapters") from None
    config: Any = LoraConfig() if lora is True else lora
    if not isinstance(config, LoraConfig):
        raise InvalidArgumentError("lora", lora, "pass True, False or a peft.LoraConfig")
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:
        raise InvalidArgumentError(
            "lora", config, f"it does not fit {type(model).__name__} ({error})"
        ) from None
