"""Low-rank adapters on a language model, with the optional package ``peft``."""

from __future__ import annotations

import copy
import dataclasses
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.errors import InvalidArgumentError, MissingDependencyError

from .policy import LanguageModelPolicy

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from textgym.models.incremental import IncrementalLanguageModel

__all__ = [
    "AdapterOffPolicy",
    "add_lora",
    "check_gradient",
    "fingerprint",
    "lora_as_text",
    "merged",
    "weights_kept",
]


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
        arguments = _arguments_of(lora)
    if not isinstance(arguments, Mapping):
        remedy = 'pass True, a peft.LoraConfig, or its arguments as in {"r": 16}.'
        raise InvalidArgumentError("lora", lora, remedy)
    plain = {k: sorted(v) if isinstance(v, set | frozenset) else v for k, v in arguments.items()}
    try:
        return json.dumps(plain, default=_plain_number)
    except (TypeError, ValueError) as error:
        remedy = f"its arguments must be numbers, texts, and lists or dicts of them ({error})."
        raise InvalidArgumentError("lora", lora, remedy) from None


def _arguments_of(config: Any) -> dict[str, Any] | None:
    """The arguments of a LoraConfig that are not the defaults; None if it is something else."""
    try:
        from peft import LoraConfig
    except ImportError:
        return None
    if not isinstance(config, LoraConfig):
        return None
    default = LoraConfig().to_dict()
    return {k: v for k, v in config.to_dict().items() if k not in default or v != default[k]}


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is none")


def add_lora(model: PreTrainedModel, lora: bool | str | Mapping[str, Any] | LoraConfig) -> None:
    """Freeze a model and add adapters to it, in place (Hu et al. 2021, arXiv 2106.09685).

    The adapters start at zero, so the model still computes the same. They are in float32, whatever
    the dtype of the weights below them: in bfloat16, small steps would be lost in rounding.

    Args:
        model: The model; its class does not change.
        lora: See :func:`lora_as_text`. Without ``target_modules``, adapters are where ``peft`` puts
            them by default in a known architecture, and on all linear layers in another one.

    Raises:
        MissingDependencyError: If ``peft`` is not installed.
        InvalidArgumentError: If ``lora`` is something else, or does not fit the model.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import cast_adapter_dtype
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    except ImportError:
        raise MissingDependencyError("peft", "lora", "training low-rank adapters") from None
    is_config = isinstance(lora, LoraConfig)
    text = "{}" if is_config else lora_as_text(lora) or "{}"
    try:
        config: Any = lora if is_config else LoraConfig(**json.loads(text))
        if config.target_modules is None and config.target_parameters is None:
            default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
            if model.config.model_type not in default:
                config = dataclasses.replace(config, target_modules="all-linear")
        model.add_adapter(config)
        cast_adapter_dtype(model, "default")
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            "lora",
            lora,
            f"it does not fit {type(model).__name__} ({error}); name the layers that adapters "
            'belong on, as in {"target_modules": ["q_proj", "v_proj"]}',
        ) from None


@contextmanager
def weights_kept(model: PreTrainedModel) -> Iterator[None]:
    """A context in which adapters are added, which must leave the weights below them alone.

    PiSSA and OLoRA, among the ways to start adapters, move a part of the weights into them. With
    such adapters switched off, a model is not what it was before, so not the reference policy.

    Args:
        model: A model without adapters.

    Raises:
        InvalidArgumentError: If a weight is another one at the end.
    """
    before = {name: _first_numbers(parameter) for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        was = before.get(name.replace(".base_layer", ""))
        if was is not None and not np.array_equal(was, _first_numbers(parameter)):
            remedy = (
                "without them, the reference policy would not be the model that you passed: leave "
                "init_lora_weights at true."
            )
            raise InvalidArgumentError("lora", f"adapters that change {name}", remedy)


def check_gradient(model: PreTrainedModel) -> None:
    """Check that a quantised model passes gradients to the adapters in its first layer.

    Some kernels for quantised weights only compute the forward pass. Adapters below them would
    never change, without any error.

    Args:
        model: A quantised model with adapters.

    Raises:
        InvalidArgumentError: If the gradient is zero.
    """
    # B starts at zero, and its gradient does not; with A it is the other way round.
    names = ("lora_B", "lora_embedding_B")
    first = next(p for n, p in model.named_parameters() if any(name in n for name in names))
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        model(input_ids=ids)  # As in a rollout: it lets bitsandbytes repack weights for a CPU.
    with torch.enable_grad():
        loss = model(input_ids=ids).logits.float().log_softmax(-1)[0, :, 0].sum()
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, first, allow_unused=True)
    if gradient is None or not gradient.any():
        raise InvalidArgumentError(
            "policy",
            type(model).__name__,
            f"its quantised layers pass no gradients on {model.device}, so adapters cannot be "
            "trained: use a device that the quantisation was made for, or load the model "
            "unquantised, with dtype=torch.bfloat16 to save memory",
        )


class AdapterOffPolicy(LanguageModelPolicy):
    """A policy as it was before its adapters were trained, without a second copy of its weights.

    Args:
        policy: A policy with adapters; its model is shared, and the adapters are switched off while
            this policy runs it.

    Raises:
        InvalidArgumentError: If parameters are trained that are not switched off with the adapters.
    """

    def __init__(self, policy: LanguageModelPolicy) -> None:
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad and ".default" not in name:  # the name of the adapters
                remedy = 'the reference policy would change with it: leave bias at "none".'
                raise InvalidArgumentError("lora", f"trains {name}", remedy)
        super().__init__(policy.model, policy.rules, policy.temperature, policy.autocast_dtype)
        self.value_head.requires_grad_(False)

    @contextmanager
    def _with_reader(self) -> Iterator[IncrementalLanguageModel]:
        with _adapters_off(self.model), super()._with_reader() as reader:
            yield reader

    def _run(self, *arguments: Any, **keywords: Any) -> Any:
        with _adapters_off(self.model):
            return super()._run(*arguments, **keywords)


@contextmanager
def _adapters_off(model: PreTrainedModel) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    kinds = BaseTunerLayer, ModulesToSaveWrapper
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    if all(module.disable_adapters for module in modules):
        yield  # In another such context, whose end turns them on again.
        return
    model.disable_adapters()
    try:
        yield
    finally:
        for module in modules:  # model.enable_adapters() would leave modules_to_save off.
            module.enable_adapters(enabled=True)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model in which adapters are added to the weights; without any, the model itself.

    Args:
        model: A model with or without adapters, or a ``peft.PeftModel``.
    """
    from textgym.models.signature import unwrapped  # Imported here: slow.

    if getattr(model, "peft_config", None) is None:  # Whatever adds adapters sets it.
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    model = unwrapped(copy.deepcopy(model))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    _untie_if_any(model, layers.values())
    for layer in layers.values():
        layer.merge()
    # Modules that are trained whole, and embeddings of which some rows are.
    kind = AuxiliaryTrainingWrapper
    wrappers = {n: m for n, m in model.named_modules() if isinstance(m, kind)}
    plain = {name: layer.get_base_layer() for name, layer in layers.items()} | {
        name: wrapper.unload_and_optionally_merge_module(False, False, None)
        for name, wrapper in wrappers.items()
    }
    for name, module in plain.items():
        parent, _, attribute = name.rpartition(".")
        # Adapters of several parameters of one module are wrapped around each other.
        if not any(name.startswith(f"{outer}.") for outer in plain):
            setattr(model.get_submodule(parent), attribute, module)
    model._hf_peft_config_loaded = False
    del model.peft_config
    return model


def _untie_if_any(model: PreTrainedModel, layers: Iterable[Any]) -> None:
    """Give the head weights of its own, if it shares those of an embedding and one has adapters.

    Otherwise, what is added to one would be added to the other, too.
    """
    ends: tuple[Any, Any] = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (getattr(module, "base_layer", module) for module in ends)
    if head is None:  # A classifier has none.
        return
    if not set(layers).isdisjoint(ends) and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def fingerprint(model: torch.nn.Module) -> int:
    """A checksum of the weights below a model's adapters, from the first numbers of each."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            total = zlib.crc32(_first_numbers(parameter).tobytes(), total)
    return total


def _first_numbers(parameter: torch.Tensor) -> NDArray[np.float32]:
    """The first 64 numbers of a weight, in a copy."""
    return parameter.detach().flatten()[:64].float().cpu().numpy().copy()
