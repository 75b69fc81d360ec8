"""Running a suite: what is there is skipped, the rest runs in parallel."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from textgym.errors import InvalidArgumentError

from .circumstances import describe
from .measures import ENDS
from .methods import METHODS, load_methods
from .plan import EPISODES, TASKS, Method, Suite
from .runner import run_missing
from .storage import read_rows
from .training import KEYS, train

__all__ = ["plan_runs", "run_suite"]

_SETTINGS = ("agent", "credit", "credit_kwargs", "hyperparameters", "by_task")
"""What a method's runs depend on."""
_PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy", "pandas", "scikit-learn")


def plan_runs(
    suite: Suite,
    seeds: int | None = None,
    iterations: int | None = None,
    dtype: str = "float32",
    only: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> list[tuple]:
    """The arguments of all runs of a suite, the first seeds of all methods first.

    Args:
        suite: The suite.
        seeds: Number of seeds; None: the suite's.
        iterations: Length of every run; None: the suite's, or else the task's.
        dtype: "float32" or "bfloat16".
        only: The methods to run; all if empty.
        tasks: The tasks to run; all if empty.

    Raises:
        InvalidArgumentError: If ``only`` or ``tasks`` names what the suite does not have.
    """
    _check_names("only", only, suite.methods)
    _check_names("tasks", tasks, suite.tasks)
    return [
        (task, method, iterations or suite.iterations or TASKS[task].iterations, dtype, seed)
        for seed in range(suite.seeds if seeds is None else seeds)
        for task in tasks or suite.tasks
        for method in only or suite.methods
    ]


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    seeds: int | None = None,
    iterations: int | None = None,
    jobs: int = 1,
    engine: Literal["processes", "ray"] = "processes",
    dtype: str = "float32",
    num_fresh: int = 512,
    methods_file: Path | None = None,
    only: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> pd.DataFrame:
    """Run what is missing of a suite.

    Args:
        suite: The suite.
        folder: Gets ``runs.parquet`` and ``meta.json``, after every run.
        seeds: See :func:`plan_runs`.
        iterations: See :func:`plan_runs`.
        jobs: Number of processes, each of one thread.
        engine: See :func:`textgym.benchmark.runner.run_missing`.
        dtype: "float32" or "bfloat16", what policy and reward model compute in.
        num_fresh: See :func:`textgym.benchmark.training.train`.
        methods_file: A Python file with methods of the user's. They join the suite.
        only: See :func:`plan_runs`.
        tasks: See :func:`plan_runs`.

    Returns:
        All rows, old and new.

    Raises:
        InvalidArgumentError: If ``only`` or ``tasks`` names what the suite does not have, or the
            folder has runs of another length or dtype, or of a method with other settings, which
            no table should mix.
    """
    own = load_methods(methods_file)
    suite = dataclasses.replace(suite, methods=tuple(dict.fromkeys((*suite.methods, *own))))
    runs = plan_runs(suite, seeds, iterations, dtype, only, tasks)
    _check_folder(folder / "runs.parquet", runs)
    stored = _settings_of_stored_runs(folder)
    settings = {method: _plain(METHODS[method]) for method in suite.methods}
    _check_settings(folder, stored, settings)
    meta = describe(*_PACKAGES) | {
        "suite": dataclasses.asdict(suite),
        "episodes_per_iteration": EPISODES,
        "dtype": dtype,
        "fresh_completions": num_fresh,
        "tasks": {task: dataclasses.asdict(TASKS[task]) for task in suite.tasks},
        "methods": settings | {name: stored[name] for name in stored if name not in settings},
    }
    return run_missing(
        partial(train, methods_file, num_fresh),
        runs,
        KEYS,
        folder / "runs.parquet",
        meta,
        order="iteration",
        jobs=jobs,
        engine=engine,
        report=_describe_run,
    )


def _check_names(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InvalidArgumentError(argument, name, f"the suite has {', '.join(known)}")


def _check_folder(path: Path, runs: list[tuple]) -> None:
    """Refuse a folder whose runs differ in kind from those to be made."""
    planned = {(task, iterations, dtype) for task, _, iterations, dtype, _ in runs}
    tasks = {task for task, *_ in planned}
    stored = read_rows(path, KEYS)[["task", "iterations", "dtype"]].drop_duplicates()
    for kind in stored.itertuples(index=False, name=None):
        if kind[0] in tasks and kind not in planned:
            task, iterations, dtype = kind
            raise InvalidArgumentError(
                "output",
                str(path.parent),
                f"has runs of {iterations} iterations in {dtype} on {task}; "
                "a folder holds runs of one length and dtype, so take another",
            )


def _settings_of_stored_runs(folder: Path) -> dict[str, Any]:
    """By method, the settings of the runs that a folder has, as its ``meta.json`` tells them."""
    path = folder / "meta.json"
    told = json.loads(path.read_text(encoding="utf-8"))["methods"] if path.exists() else {}
    methods = set(read_rows(folder / "runs.parquet", KEYS)["method"])
    return {method: settings for method, settings in told.items() if method in methods}


def _check_settings(folder: Path, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse a folder with runs of a method whose settings have changed since."""
    for method in settings.keys() & stored.keys():
        now = json.loads(json.dumps(settings[method]))
        if any(stored[method].get(name) != now[name] for name in _SETTINGS):
            raise InvalidArgumentError(
                "output",
                str(folder),
                f"has runs of {method} with other settings; give the method another name, or take "
                "another folder",
            )


def _plain(method: Method) -> dict[str, Any]:
    """A method as JSON values."""
    plain = dataclasses.asdict(dataclasses.replace(method, agent=""))
    return {**plain, "agent": method.agent_name}


def _describe_run(run: pd.DataFrame) -> str:
    last = run.tail(ENDS)
    return f"score {last['score'].mean():+.2f}, KL {last['kl'].mean():.0f} at the end"
