"""Parts of an agent that are chosen by name, or passed as an object of the user's own.

In the hyperparameters, and so in config.json, checkpoints and on the command line, a part is a
name. An object of the user's own is named "custom" there: a checkpoint holds its state, but not its
code, so whoever loads the checkpoint passes the object again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textgym.errors import InvalidArgumentError

__all__ = ["CUSTOM", "check_part", "own_part", "split_own_parts"]

CUSTOM = "custom"


def split_own_parts(
    hyperparameters: dict[str, Any], parts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replace objects by the name "custom".

    Args:
        hyperparameters: What the user passed.
        parts: The hyperparameters that may be objects.

    Returns:
        The hyperparameters in plain values, and the objects by the names of their hyperparameters.
    """
    own_parts = {
        name: value
        for name, value in hyperparameters.items()
        if name in parts and not isinstance(value, str)
    }
    return hyperparameters | dict.fromkeys(own_parts, CUSTOM), own_parts


def own_part(name: str, chosen: str, own_parts: dict[str, Any]) -> Any:
    """The user's object for a part; None if the part was chosen by name.

    Args:
        name: The hyperparameter.
        chosen: Its value.
        own_parts: The objects of :func:`split_own_parts`.

    Raises:
        InvalidArgumentError: If the agent was made with an object, which is now missing.
    """
    if chosen == CUSTOM and name not in own_parts:
        raise InvalidArgumentError(
            name, CUSTOM, f"the agent was made with an object: pass it again, as {name}=..."
        )
    return own_parts.get(name)


def check_part(name: str, part: Any, needs: Sequence[str], example: str) -> None:
    """Make sure that an object can be used as a part.

    Args:
        name: The hyperparameter.
        part: What the user passed.
        needs: The attributes that it must have.
        example: The class or protocol of such objects, for the error.

    Raises:
        InvalidArgumentError: If it lacks one, or is a class.
    """
    lacks = [attribute for attribute in needs if not hasattr(part, attribute)]
    if lacks or isinstance(part, type):
        fault = f"it has no {lacks[0]}" if lacks else "it is a class"
        remedy = f"{fault}: pass an object like {example}, or the name of a part that ships."
        raise InvalidArgumentError(name, part, remedy)
