"""Checks of plain arguments: numbers, flags, texts, names.

Each returns the value in its plain form, or raises an InvalidArgumentError that names the argument,
the value and the remedy.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from textgym.errors import InvalidArgumentError

__all__ = [
    "check_flag",
    "check_number",
    "check_path",
    "check_takes",
    "check_text",
    "check_whole_number",
    "did_you_mean",
    "first_line",
    "similar_names",
]

_NAMES_ELSEWHERE = {
    "batch_size": "minibatch_size",
    "beta": "kl_coef",
    "bf16": "dtype",
    "clip_epsilon": "clip_coef",
    "cliprange": "clip_coef",
    "dataset": "prompts",
    "discount": "gamma",
    "discount_factor": "gamma",
    "epsilon": "clip_coef",
    "fp16": "dtype",
    "init_kl_coef": "kl_coef",
    "lam": "gae_lambda",
    "lr": "learning_rate",
    "max_completion_length": "max_new_tokens",
    "max_episode_steps": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "n_steps": "episodes_per_iteration",
    "model": "policy",
    "num_generations": "group_size",
    "num_steps": "episodes_per_iteration",
    "output_dir": "log_dir",
    "peft_config": "lora",
    "processing_class": "tokenizer",
    "reward_fn": "reward_model",
    "reward_func": "reward_model",
    "reward_funcs": "reward_model",
    "response_length": "max_new_tokens",
    "save_steps": "save_every",
    "target_kl": "max_approx_kl",
    "tensorboard_log": "log_dir",
    "torch_dtype": "dtype",
    "train_dataset": "prompts",
    "use_peft": "lora",
}
"""What other libraries call our arguments, where the letters do not tell or mislead: their ``lr``
looks like ``lora``, and the ``target_kl`` of Stable-Baselines3 is not our ``kl_target``."""


def check_flag(argument: str, value: Any) -> bool:
    """Return a flag as a plain bool.

    Raises:
        InvalidArgumentError: If it is neither True nor False. Words such as "no" count as true in
            Python, so they are refused.
    """
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgumentError(argument, value, "must be True or False")
    return bool(value)


def check_whole_number(argument: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number as a plain int.

    Args:
        argument: The argument's name, for the error.
        value: The number; NumPy integers are welcome.
        least: The smallest number allowed.
        most: The largest number allowed; None for no limit.

    Raises:
        InvalidArgumentError: If it is not a whole number from ``least`` to ``most``.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limits = f"at least {least}" + ("" if most is None else f" and at most {most}")
        raise InvalidArgumentError(argument, value, f"must be a whole number of {limits}")
    return int(value)


def check_number(
    argument: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    remedy: str = "must be a finite number",
) -> float:
    """Return a finite number as a plain float.

    Args:
        argument: The argument's name, for the error.
        value: The number; NumPy numbers are welcome.
        least: The smallest number allowed.
        most: The largest number allowed.
        above: The number must be greater than this one.
        remedy: What to pass, for the error.

    Raises:
        InvalidArgumentError: If it is not a number, not finite, or outside the limits.
    """
    try:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
    except OverflowError:  # a whole number beyond the range of floats
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most and number > above):
        raise InvalidArgumentError(argument, value, remedy)
    return number


def check_text(argument: str, value: Any, remedy: str = "must be text") -> str:
    """Return a text.

    Raises:
        InvalidArgumentError: If it is not a str.
    """
    if not isinstance(value, str):
        raise InvalidArgumentError(argument, value, remedy)
    return value


def check_path(argument: str, value: Any) -> Path:
    """Return the path of a file or a folder, with ``~`` replaced by the home folder.

    Raises:
        InvalidArgumentError: If it is neither text nor a path, or no path that this system can
            have, because it is empty, too long, or has a null character.
    """
    if not isinstance(value, str | Path) or not str(value):
        raise InvalidArgumentError(argument, value, "must be a path, as text or a pathlib.Path")
    try:
        path = Path(value).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # A path, though nothing that can be read is there now.
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            argument, value, f"cannot be a path on this system ({first_line(error)})"
        ) from None
    return path


def check_takes(
    argument: str, function: Callable[..., Any], remedy: str, *values: object, **keywords: object
) -> None:
    """Check that a function of the user's can be called in the way in which it will be.

    A function that does not tell its signature, as some built-in ones, passes.

    Args:
        argument: The argument's name, for the error.
        function: The function. It is not called.
        remedy: What it must take, for the error.
        *values: As many as it will get by position.
        **keywords: The names of those that it will get by keyword.

    Raises:
        InvalidArgumentError: If it takes others.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*values, **keywords)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        shown = f"{name}{signature}"
        raise InvalidArgumentError(argument, shown, f"{remedy} ({error})") from None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a remedy: the known name that is most like a wrong one, or else all of them.

    >>> did_you_mean("promt", ["prompt", "max_new_tokens"])
    "did you mean 'prompt'?"
    >>> did_you_mean("zzz", ["prompt", "max_new_tokens"])
    'choose from prompt, max_new_tokens'
    """
    names = list(known)
    similar = similar_names(name, names)
    return f"did you mean {similar[0]!r}?" if similar else f"choose from {', '.join(names)}"


def similar_names(name: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that someone may have meant by a wrong one, the likeliest first.

    What other libraries call an argument counts before the letters.

    Args:
        name: The wrong name.
        known: The right ones.
        n: The most names to return.
        cutoff: How much alike names must be, from 0 to 1.

    >>> similar_names("lr", ["lora", "learning_rate"])
    ['learning_rate']
    >>> similar_names("learning_rat", ["lora", "learning_rate"])
    ['learning_rate']
    """
    names = list(known)
    meant = _NAMES_ELSEWHERE.get(str(name))
    if meant in names:
        return [meant]
    return difflib.get_close_matches(str(name), names, n, cutoff)


def first_line(error: BaseException) -> str:
    """What another library says, in one line of at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    text = " ".join(lines[0].split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
