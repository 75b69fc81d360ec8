"""Running a suite: what is there is skipped, the rest runs in parallel."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError

from .circumstances import describe
from .measures import ENDS
from .methods import find_method, load_methods
from .plan import EPISODES, TASKS, Suite
from .runner import run_missing
from .stored import (
    check_kinds,
    check_measurement,
    check_settings,
    settings_of,
    take_over,
    tasks_of,
)
from .training import KEYS, train

__all__ = ["plan_runs", "run_suite"]

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
        InvalidArgumentError: If ``seeds`` or ``iterations`` is below 1, ``dtype`` is
            unknown, or ``only`` or ``tasks`` names what the suite does not have.
    """
    seeds = check_whole_number("seeds", suite.seeds if seeds is None else seeds, 1)
    if iterations is not None:
        check_whole_number("iterations", iterations, 1)
    if dtype not in ("float32", "bfloat16"):
        raise InvalidArgumentError("dtype", dtype, 'must be "float32" or "bfloat16"')
    _check_names("only", only, suite.methods)
    _check_names("tasks", tasks, suite.tasks)
    length = suite.iterations if iterations is None else iterations
    return [
        (task, method, TASKS[task].iterations if length is None else length, dtype, seed)
        for seed in range(seeds)
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
    reuse: Sequence[Path] = (),
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
        reuse: Folders of other suites. What they have of this one is taken from there.

    Returns:
        All rows, old and new.

    Raises:
        InvalidArgumentError: If an argument cannot be used (see :func:`plan_runs`), a method of the
            suite is unknown, or the folder has runs of another length or dtype, with another number
            of fresh completions, or of a method with other settings, which no table should mix, or
            a method has settings that JSON cannot hold, or a folder of ``reuse`` has nothing to
            offer.
    """
    suite = suite.joined_by(load_methods(methods_file))
    runs = plan_runs(suite, seeds, iterations, dtype, only, tasks)
    check_whole_number("jobs", jobs, 1)
    if check_whole_number("num_fresh", num_fresh, 0) % 64:
        raise InvalidArgumentError("num_fresh", num_fresh, "must be a multiple of 64, or 0")
    for other in reuse:
        if not (other / "runs.parquet").is_file():
            remedy = "has no runs.parquet; name the folder of a suite that was run"
            raise InvalidArgumentError("reuse", str(other), remedy)
    settings = {method: _plain(method) for method in suite.methods}
    kept, kept_tasks = settings_of(folder), tasks_of(folder)
    check_kinds(folder, runs)
    check_settings(folder, kept, settings)
    meta = describe(*_PACKAGES) | {
        "suite": dataclasses.asdict(suite),
        "episodes_per_iteration": EPISODES,
        "fresh_completions": num_fresh,
        "tasks": kept_tasks | {task: dataclasses.asdict(TASKS[task]) for task in suite.tasks},
        "methods": settings | {name: kept[name] for name in kept if name not in settings},
    }
    check_measurement(folder, meta)
    for other in reuse:
        print(f"{take_over(folder, runs, meta, other)} runs taken from {other}", flush=True)
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
    if isinstance(names, str):
        raise InvalidArgumentError(argument, names, "must be a list of names")
    for name in names:
        if name not in known:
            raise InvalidArgumentError(argument, name, f"the suite has {'; '.join(known)}")


def _plain(name: str) -> dict[str, Any]:
    """A method as JSON values."""
    method = find_method(name)
    plain = vars(method) | {"agent": method.agent_name}
    try:
        json.dumps(plain)
    except TypeError as error:
        remedy = f"its settings go into meta.json, so make them of numbers, text and lists: {error}"
        raise InvalidArgumentError("method", name, remedy) from None
    return plain


def _describe_run(run: pd.DataFrame) -> str:
    last = run.tail(ENDS)
    return f"score {last['score'].mean():+.2f}, KL {last['kl'].mean():.0f} at the end"
