"""Checks of models, their weights, and tokenizers that users pass as objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch

from textgym.errors import InvalidArgumentError
from textgym.models.readouts import Readout

__all__ = [
    "check_model",
    "check_prompt_texts",
    "check_supports",
    "check_tokenizer",
    "check_weights",
]

_checked: WeakKeyDictionary[torch.nn.Module, int] = WeakKeyDictionary()
"""By model, the state in which its weights were finite."""


def check_model(argument: str, model: Any) -> None:
    """Check that an object is a model of transformers.

    Raises:
        InvalidArgumentError: If it is not.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise InvalidArgumentError(argument, model, "must be a model of Hugging Face transformers")


def check_tokenizer(argument: str, tokenizer: Any) -> None:
    """Check that an object is a tokenizer of transformers, or acts like one.

    Raises:
        InvalidArgumentError: If it is not.
    """
    wanted = ("decode", "get_vocab", "__call__", "__len__")
    if isinstance(tokenizer, type) or not all(hasattr(tokenizer, name) for name in wanted):
        raise InvalidArgumentError(
            argument, tokenizer, "must be a loaded tokenizer of Hugging Face transformers"
        )


def check_prompt_texts(prompt_texts: Any) -> None:
    """Check texts by the tokens of prompts, or None.

    Raises:
        InvalidArgumentError: If they are something else.
    """
    if not isinstance(prompt_texts, Mapping | None):
        raise InvalidArgumentError(
            "prompt_texts", prompt_texts, "must map the tokens of prompts to texts"
        )


def check_supports(reward_model: Any, readouts: Collection[Readout]) -> None:
    """Have a reward model check that it supports some read-outs.

    One without the method ``check_readouts`` can only tell when it reads.

    Raises:
        InvalidArgumentError: If it does not support one of them.
    """
    if hasattr(reward_model, "check_readouts"):
        reward_model.check_readouts(readouts)


def check_weights(argument: str, value: object, model: torch.nn.Module) -> None:
    """Refuse NaN and infinite weights, with which every score would be NaN.

    Weights that did not change since they were checked are not read again.

    Args:
        argument: The argument that the error names.
        value: Its value, for the error.
        model: The model.

    Raises:
        InvalidArgumentError: If a weight is not finite, or holds no numbers (device "meta").
    """
    state = _state_of(model)
    if _checked.get(model) == state:
        return
    for name, weight in model.named_parameters():
        if weight.is_meta:
            raise InvalidArgumentError(
                argument, value, f'{name} is on the device "meta" and holds no numbers; load them'
            )
        is_plain = weight.is_floating_point() and weight.numel() > 0
        if is_plain and not torch.stack(weight.detach().aminmax()).isfinite().all():
            raise InvalidArgumentError(
                argument,
                value,
                f"the weights hold NaN or infinity as {str(weight.dtype).removeprefix('torch.')}, "
                f"in {name}; pass a model whose training did not diverge, or another dtype if its "
                "weights exceed the range of this one",
            )
    _checked[model] = state


def _state_of(model: torch.nn.Module) -> int:
    """A number that changes when a weight is replaced or written to."""
    weights = model.parameters()
    return hash(tuple((id(w), 0 if w.is_inference() else w._version) for w in weights))
