"""Low-rank adapters on a language model, with the optional package ``peft``."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from textgym.errors import InvalidArgumentError, MissingDependencyError

from .policy import LanguageModelPolicy

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from textgym.models.incremental import IncrementalLanguageModel

__all__ = ["AdapterOffPolicy", "add_lora", "fingerprint", "lora_as_text", "merged"]


def lora_as_text(lora: bool | str | Mapping[str, Any] | LoraConfig | None) -> str | None:
    """A choice of adapters in a form that fits a file and a command line.

    Args:
        lora: None or False for none; True for the defaults of ``peft``; a ``peft.LoraConfig``, or
            its arguments as a mapping or as JSON.

    Returns:
        None, or the arguments as JSON.

    Raises:
        InvalidArgumentError: If it is something else.

    >>> lora_as_text({"r": 16}), lora_as_text(True), lora_as_text(False)
    ('{"r": 16}', '{}', None)
    """
    if lora is None or lora is False:
        return None
    if lora is True or lora in ("true", "True"):
        return "{}"
    arguments: Any = lora
    if isinstance(lora, str):
        try:
            arguments = json.loads(lora)
        except ValueError:
            arguments = None
    elif hasattr(lora, "to_dict"):
        from peft import LoraConfig  # There is one, so peft is installed.

        default = LoraConfig().to_dict()
        arguments = {k: v for k, v in lora.to_dict().items() if v != default[k]}
    if not isinstance(arguments, Mapping):
        remedy = 'pass True, a peft.LoraConfig, or its arguments as in {"r": 16}.'
        raise InvalidArgumentError("lora", lora, remedy)
    plain = {k: sorted(v) if isinstance(v, set | frozenset) else v for k, v in arguments.items()}
    return json.dumps(plain)


def add_lora(model: PreTrainedModel, lora: bool | str | Mapping[str, Any] | LoraConfig) -> None:
    """Freeze a model and add adapters to it, in place (Hu et al. 2021, arXiv 2106.09685).

    The adapters start at zero, so the model still computes the same.

    Args:
        model: The model; its class does not change.
        lora: See :func:`lora_as_text`. By default ``peft`` knows where adapters belong in common
            architectures.

    Raises:
        MissingDependencyError: If ``peft`` is not installed.
        InvalidArgumentError: If ``lora`` is something else, or does not fit the model.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingDependencyError("peft", "lora", "training low-rank adapters") from None
    try:
        is_config = isinstance(lora, LoraConfig)
        config = lora if is_config else LoraConfig(**json.loads(lora_as_text(lora) or "{}"))
        model.add_adapter(config)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "lora", lora, f"it does not fit {type(model).__name__} ({error})"
        ) from None


class AdapterOffPolicy(LanguageModelPolicy):
    """A policy as it was before its adapters were trained, without a second copy of its weights.

    Args:
        policy: A policy with adapters; its model is shared, and the adapters are switched off while
            this policy runs it.
    """

    def __init__(self, policy: LanguageModelPolicy) -> None:
        super().__init__(policy.model, policy.rules, policy.temperature, policy.autocast_dtype)
        self.value_head.requires_grad_(False)

    @contextmanager
    def reading(self) -> Iterator[IncrementalLanguageModel]:
        """See the base class."""
        with _adapters_off(self.model), super().reading() as reader:
            yield reader

    def _run(self, *arguments: Any, **keywords: Any) -> Any:
        with _adapters_off(self.model):
            return super()._run(*arguments, **keywords)


@contextmanager
def _adapters_off(model: PreTrainedModel) -> Iterator[None]:
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in which adapters are added to the weights; without any, the model itself.

    Args:
        model: A model with or without adapters.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())
    model._hf_peft_config_loaded = False
    return model


def fingerprint(model: torch.nn.Module) -> int:
    """A checksum of the weights below a model's adapters, from the first numbers of each."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            first = parameter.detach().flatten()[:64].float().cpu().numpy()
            total = zlib.crc32(first.tobytes(), total)
    return total
