"""Runs that are stored: what a folder may go on with, and what it can take from other folders.

Suites share tasks and methods, and a run is decided by its arguments, its settings and its seed. So
a run that one suite has made is also a run of another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from textgym.errors import InvalidArgumentError

from .plan import EPISODES
from .storage import only_writer, read_rows, write_json, write_rows
from .training import KEYS

__all__ = [
    "check_kinds",
    "check_measurement",
    "check_settings",
    "settings_of",
    "take_over",
    "tasks_of",
]

_ROWS, _META = "runs.parquet", "meta.json"
_SETTINGS = ("agent", "credit", "credit_kwargs", "num_envs")
"""What a method's runs depend on, besides the hyperparameters of their task."""
_BEFORE = {"num_envs": EPISODES}
"""Settings that older folders do not tell, as they were then."""
_TASK = ("env_id", "env_kwargs", "policy", "film_reviews")
"""What a task's runs depend on, besides their length, which is an argument of theirs."""
_MEASUREMENT = {
    "episodes_per_iteration": "episodes_per_iteration",
    "fresh_completions": "num_fresh",
}
"""What all runs of a folder have in common, besides, and what errors call it."""


def check_kinds(folder: Path, runs: Sequence[tuple]) -> None:
    """Refuse a folder whose runs differ in length or dtype from those to be made.

    Raises:
        InvalidArgumentError: If they do.
    """
    planned = {(task, iterations, dtype) for task, _, iterations, dtype, _ in runs}
    tasks = {task for task, *_ in planned}
    stored = _rows_of(folder)[["task", "iterations", "dtype"]].drop_duplicates()
    for kind in stored.itertuples(index=False, name=None):
        if kind[0] in tasks and kind not in planned:
            task, iterations, dtype = kind
            raise InvalidArgumentError(
                "output",
                str(folder),
                f"has runs of {iterations} iterations in {dtype} on {task}; "
                "a folder holds runs of one length and dtype, so take another",
            )


def check_measurement(folder: Path, meta: Mapping[str, Any]) -> None:
    """Refuse a folder whose runs were measured otherwise, or on tasks that have changed since.

    Args:
        folder: Has the runs.
        meta: What its ``meta.json`` will tell.

    Raises:
        InvalidArgumentError: If they were.
    """
    told, tasks = _meta_of(folder), set(_rows_of(folder)["task"])
    for name, argument in _MEASUREMENT.items():
        if tasks and told.get(name, meta[name]) != meta[name]:
            remedy = f"the runs in {folder} have {told[name]}; take another folder for the output"
            raise InvalidArgumentError(argument, meta[name], remedy)
    before = told.get("tasks", {})
    for task, now in meta["tasks"].items():
        if task in tasks and task in before and not _is_same_task(before[task], now):
            raise InvalidArgumentError(
                "output",
                str(folder),
                f"has runs on {task} as an earlier version defined it; take another folder",
            )


def settings_of(folder: Path) -> dict[str, Any]:
    """By method, the settings of the runs that a folder has, as its ``meta.json`` tells them."""
    return _told_of_rows(folder, "method")


def tasks_of(folder: Path) -> dict[str, Any]:
    """By name, the tasks of the runs that a folder has, as its ``meta.json`` tells them."""
    return _told_of_rows(folder, "task")


def check_settings(folder: Path, kept: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a folder with runs of a method whose settings on their task have changed since.

    Args:
        folder: Has the runs.
        kept: Their settings, by method.
        settings: Today's, by method.

    Raises:
        InvalidArgumentError: If they have changed.
    """
    has = _rows_of(folder)[["method", "task"]].drop_duplicates()
    for method, task in has.itertuples(index=False, name=None):
        now = settings.get(method)
        if method in kept and now is not None and not _are_same(kept[method], now, task):
            raise InvalidArgumentError(
                "output",
                str(folder),
                f"has runs of {method} on {task} with other settings; give the method another "
                "name, or take another folder, which can have the other runs (--reuse)",
            )


def take_over(folder: Path, runs: Sequence[tuple], meta: Mapping[str, Any], other: Path) -> int:
    """Store what another folder has of the runs that are missing in a folder.

    A run is taken if task, method, length, dtype and seed are asked for, and if the ``meta.json``
    of the other folder tells the same as this one of task, method and measurement. It keeps the
    commit that it was made with.

    Args:
        folder: Gets the runs.
        runs: The arguments of the runs asked for.
        meta: What the folder's ``meta.json`` tells, or will tell.
        other: Has ``runs.parquet`` and ``meta.json``.

    Returns:
        The number of runs taken.

    Raises:
        InvalidArgumentError: If the other folder has none of the runs asked for, or another process
            is writing to this one.
    """
    told, offered = _meta_of(other), _rows_of(other)
    tasks, settings = told.get("tasks", {}), settings_of(other)
    shared = {
        run
        for run in runs
        if _is_same_task(tasks.get(run[0], {}), meta["tasks"][run[0]])
        and _are_same(settings.get(run[1], {}), meta["methods"][run[1]], run[0])
        and all(told.get(name) == meta[name] for name in _MEASUREMENT)
    }
    keys = _keys_of(offered)
    if not shared.intersection(keys):
        raise InvalidArgumentError(
            "reuse",
            str(other),
            "has no run that this suite asks for: the same task, method, length, dtype and seed, "
            "with the same settings and as many fresh completions",
        )
    with only_writer(folder):
        own = _rows_of(folder)
        wanted = shared.difference(_keys_of(own))
        new = offered[[key in wanted for key in keys]]
        if len(new):
            rows = new if own.empty else pd.concat([own, new], ignore_index=True)
            # The settings first: a process that is killed leaves no rows without them.
            write_json(meta, folder / _META)
            write_rows(rows.sort_values([*KEYS, "iteration"], ignore_index=True), folder / _ROWS)
    return len(wanted.intersection(keys))


def _rows_of(folder: Path) -> pd.DataFrame:
    return read_rows(folder / _ROWS, KEYS)


def _keys_of(rows: pd.DataFrame) -> list[tuple]:
    return list(rows[list(KEYS)].itertuples(index=False, name=None))


def _meta_of(folder: Path) -> dict[str, Any]:
    path = folder / _META
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _told_of_rows(folder: Path, column: str) -> dict[str, Any]:
    present = set(_rows_of(folder)[column])
    told = _meta_of(folder).get(f"{column}s", {})
    return {name: one for name, one in told.items() if name in present}


def _is_same_task(stored: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a task, as stored, makes the same runs as today's."""
    now = _in_json(now)
    return all(stored.get(name) == now.get(name) for name in _TASK)


def _are_same(stored: Mapping[str, Any], now: Mapping[str, Any], task: str) -> bool:
    """Whether the settings of a method on a task, as stored, are those of today."""
    stored, now = {**_BEFORE, **stored}, _in_json(now)
    same = all(stored.get(name) == now[name] for name in _SETTINGS)
    return same and _hyperparameters(stored, task) == _hyperparameters(now, task)


def _hyperparameters(settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    return {**settings.get("hyperparameters", {}), **settings.get("by_task", {}).get(task, {})}


def _in_json(value: Any) -> Any:
    """A value as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value))
