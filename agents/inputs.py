"""Checks of what users pass to the methods of an agent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.checks import check_flag, check_path, check_takes, check_whole_number, first_line
from textgym.errors import InvalidArgumentError

__all__ = [
    "check_action_masks",
    "check_folder",
    "check_learn",
    "check_observation",
    "check_restored",
    "explain_damage",
]

P = ParamSpec("P")
Class = TypeVar("Class")
Result = TypeVar("Result")


def check_learn(total_timesteps: Any, progress_bar: Any, callback: Any) -> None:
    """Check the arguments of ``learn``.

    Raises:
        InvalidArgumentError: If one of them cannot be used.
    """
    if isinstance(total_timesteps, float) and total_timesteps.is_integer():  # such as 1e6
        total_timesteps = int(total_timesteps)
    check_whole_number("total_timesteps", total_timesteps, 1)
    check_flag("progress_bar", progress_bar)
    if callback is not None:
        remedy = "must be a function of the row of scalars of an iteration, or None"
        if not callable(callback):
            raise InvalidArgumentError("callback", callback, remedy)
        check_takes("callback", callback, remedy, {})


def check_observation(observation: Any, num_actions: int, max_length: int | None) -> None:
    """Check an observation, single or batched.

    Args:
        observation: What the user passed to ``predict``.
        num_actions: Size of the vocabulary.
        max_length: The most tokens that the policy takes; None for any number.

    Raises:
        InvalidArgumentError: Unless it has ``input_ids``, token ids at least where
            ``attention_mask`` says so, and ``attention_mask``, 0 or 1, of the same shape, with one
            axis or two; or if a text is too long.
    """
    names = ("input_ids", "attention_mask")
    if not hasattr(observation, "keys") or not set(names) <= set(observation.keys()):
        raise InvalidArgumentError(
            "observation", observation, "must be a dict with input_ids and attention_mask"
        )
    try:
        ids, mask = (np.asarray(observation[name]) for name in names)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors of other devices
        ids, mask = np.array(None), np.array(None)
    for name, values in zip(names, (ids, mask), strict=True):
        if values.dtype.kind not in "iub" or values.ndim not in (1, 2) or values.size == 0:
            raise InvalidArgumentError(
                f"observation[{name!r}]",
                observation[name],
                "must be whole numbers of shape (max_length,) or (num_envs, max_length)",
            )
    if ids.shape != mask.shape:
        raise InvalidArgumentError(
            "observation['attention_mask']",
            mask.shape,
            f"must have the shape of input_ids, {ids.shape}",
        )
    if not np.isin(mask, (0, 1)).all():
        raise InvalidArgumentError(
            "observation['attention_mask']", mask, "must be 1 at tokens and 0 at padding"
        )
    tokens = ids[mask.astype(bool)]
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < num_actions:
        raise InvalidArgumentError(
            "observation['input_ids']",
            ids,
            f"must be token ids from 0 to {num_actions - 1}, those of the policy's vocabulary",
        )
    length = int(mask.sum(axis=-1).max())
    if max_length is not None and length > max_length:
        raise InvalidArgumentError(
            "observation['input_ids']",
            ids,
            f"has {length} tokens, and the policy takes {max_length}; pass a shorter text",
        )


def check_action_masks(action_masks: Any, num_rows: int, num_actions: int) -> NDArray[np.bool_]:
    """Action masks as a bool array of shape (num_rows, num_actions).

    Raises:
        InvalidArgumentError: If they have another shape or other values, or leave a row without an
            action.
    """
    try:
        masks = np.atleast_2d(np.asarray(action_masks))
    except (TypeError, ValueError, RuntimeError):
        masks = np.array([[]])
    if masks.shape != (num_rows, num_actions) or masks.dtype.kind not in "iubf":
        raise InvalidArgumentError(
            "action_masks",
            masks.shape,
            f"must have shape ({num_rows}, {num_actions}): a row per observation, and True or 1 at "
            "the legal tokens",
        )
    if not np.isin(masks, (0, 1)).all():
        raise InvalidArgumentError("action_masks", masks, "must be True or 1, and False or 0")
    if not masks.any(axis=1).all():
        row = int(np.flatnonzero(~masks.any(axis=1))[0])
        raise InvalidArgumentError(
            "action_masks", masks, f"row {row} has no legal token; leave at least one"
        )
    return masks.astype(bool)


def check_folder(argument: str, folder: Any) -> None:
    """Check where a checkpoint or a model is to be written.

    Raises:
        InvalidArgumentError: If it is no path of a folder, or a file.
    """
    path = check_path(argument, folder)
    if path.exists() and not path.is_dir():
        raise InvalidArgumentError(argument, str(folder), "is a file; name a folder")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise InvalidArgumentError(
                argument, str(folder), f"{parent} is a file; name a path in a folder"
            )


def explain_damage(
    load: Callable[Concatenate[type[Class], Any, P], Result],
) -> Callable[Concatenate[type[Class], Any, P], Result]:
    """Let a class method that reads a checkpoint name it in every error about its contents."""

    @functools.wraps(load)
    def load_and_explain(cls: type[Class], path: Any, *args: P.args, **kwargs: P.kwargs) -> Result:
        check_path("path", path)
        try:
            return load(cls, path, *args, **kwargs)
        except (InvalidArgumentError, torch.OutOfMemoryError):
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InvalidArgumentError(
                "path",
                str(path),
                f"it is no whole checkpoint that {cls.__name__}.save wrote "
                f"({type(error).__name__}: {first_line(error)}); load another one",
            ) from error

    return load_and_explain


def check_restored(
    path: Any,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    contents: Mapping[str, Any],
) -> None:
    """Check what a checkpoint gave: finite weights, an optimizer that fits them, and the rest.

    Raises:
        InvalidArgumentError: If not.
    """
    history = contents["history"]
    is_whole = (
        {"episodes", "tokens", "minibatches", "predict"} <= set(contents["generators"])
        and isinstance(contents["num_timesteps"], int)
        and isinstance(contents["seconds"], float | int)
        and isinstance(history, list)
        and all(isinstance(row, dict) for row in history)
    )
    if not is_whole:
        raise InvalidArgumentError(
            "path",
            str(path),
            "its counters, history or generators are not what save writes; load another checkpoint",
        )
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InvalidArgumentError(
                "path",
                str(path),
                f"its weights hold NaN or infinity, in {name}: the training diverged; load an "
                "earlier checkpoint",
            )
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            is_scalar = not isinstance(value, torch.Tensor) or value.ndim == 0
            if not is_scalar and value.shape != weight.shape:
                raise InvalidArgumentError(
                    "path",
                    str(path),
                    f"the optimizer's {name} has shape {tuple(value.shape)} for a weight of shape "
                    f"{tuple(weight.shape)}; load another checkpoint",
                )
