"""Values that an annotation does not allow."""

from __future__ import annotations

import collections.abc
import inspect
import math
import types
import typing
from typing import Annotated, Any, Union, get_args, get_origin

import gymnasium as gym
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.credit import Potential
from textgym.credit.potentials import StateFunction

NAMES: dict[str, Any] = {
    "gym": gym,
    "PreTrainedModel": PreTrainedModel,
    "PreTrainedTokenizerBase": PreTrainedTokenizerBase,
    "Potential": Potential,
    "StateFunction": StateFunction,
    "VectorEnv": VectorEnv,
}
"""What some modules import for type checkers alone."""


class Stranger:
    """An object that no argument wants."""

    def __repr__(self) -> str:
        return "Stranger()"


VALUES = {
    "None": None,
    "text": "no such thing",
    "empty text": "",
    "digits": "5",
    "bytes": b"abc",
    "list": [],
    "list of a text": ["abc"],
    "dict": {},
    "object": Stranger(),
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "minus one": -1,
    "fraction": 1.5,
    "complex": 1j,
    "True": True,
    "class": Stranger,
    "long text": "x" * 100_000,
}
"""Things that people pass by mistake. What an annotation allows is left out for it."""

TEXTS = {"text", "empty text", "digits", "long text"}


def kinds(hint: Any) -> set[Any]:
    """The types that an annotation is made of."""
    origin = get_origin(hint)
    if origin is Annotated:
        return kinds(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(kinds, get_args(hint)))
    return {type(None) if hint is None else hint}


def wrong_values(hint: Any, free_text: bool = False) -> dict[str, Any]:
    """Values that an annotation rules out, by label.

    Args:
        hint: The resolved annotation.
        free_text: Whether any text is right, so that no text is wrong.
    """
    parts = kinds(hint)
    allowed: set[str] = set()
    if Any in parts and len(parts) == 1:
        return {}
    if type(None) in parts:
        allowed.add("None")
    if bool in parts:
        allowed.add("True")
    if float in parts:
        allowed |= {"fraction"}
    if str in parts and free_text:
        allowed |= TEXTS
    for part in parts:
        origin = get_origin(part) or part
        if origin is collections.abc.Callable:
            allowed.add("class")
        if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
            allowed.add("dict")
    return {label: value for label, value in VALUES.items() if label not in allowed}


def hints_of(target: Any) -> dict[str, Any]:
    """The resolved annotations of the parameters of a class or a function, by name."""
    function = target.__init__ if inspect.isclass(target) else target
    signature = inspect.signature(target)
    resolved = {}
    if any(isinstance(one.annotation, str) for one in signature.parameters.values()):
        namespace: dict[str, Any] = {}
        for one in reversed(getattr(target, "__mro__", (target,))):
            namespace |= vars(inspect.getmodule(one) or types)
        resolved = typing.get_type_hints(
            function, {**NAMES, **namespace, **getattr(function, "__globals__", {})}
        )
    return {
        name: resolved.get(name, one.annotation)
        for name, one in signature.parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
