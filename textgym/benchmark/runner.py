"""Runs that can be stopped and continued: what is stored is not run again.

A run is a function of a few arguments, such as a condition and a seed, that returns its rows. Runs
take place in parallel processes of one thread each. Rows and circumstances are stored after every
run, so a benchmark that is killed loses only the runs that were going on.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from textgym.errors import InvalidArgumentError, MissingDependencyError

from .circumstances import commit_of_code, finished_today
from .storage import Aliases, only_writer, read_rows, write_json, write_rows

__all__ = ["check_shared", "duration", "run_missing"]

Run = Callable[..., pd.DataFrame]
Arguments = tuple[Any, ...]
Outcome = tuple[Arguments, pd.DataFrame | Exception]


def run_missing(
    run: Run,
    todo: Iterable[Arguments],
    keys: Sequence[str],
    path: Path,
    meta: Mapping[str, Any],
    *,
    order: str,
    jobs: int = 1,
    engine: Literal["processes", "ray"] = "processes",
    shared: Mapping[str, Any] = MappingProxyType({}),
    untold: Mapping[str, Any] = MappingProxyType({}),
    aliases: Aliases | None = None,
    report: Callable[[pd.DataFrame], str] = lambda rows: f"{len(rows)} rows",
) -> pd.DataFrame:
    """Run what is not stored yet.

    Args:
        run: Takes the arguments of a run and returns its rows; a function of a module, since other
            processes import it.
        todo: Arguments of all runs.
        keys: Names of the arguments. They become the first columns, with the commit behind them.
        path: A .csv or .parquet file with the rows of all runs; meta.json goes beside it.
        meta: Written to meta.json after every run, ``finished`` as of that day.
        order: The column that sorts the rows of a run.
        jobs: Number of processes.
        engine: "processes" of this machine, or "ray": tasks of the cluster that the environment
            variable ``RAY_ADDRESS`` names, or else of this machine.
        shared: What all runs of a folder have in common and no key tells, such as a dtype. It goes
            into meta.json.
        untold: The same of runs whose meta.json does not tell it.
        aliases: By column, labels of earlier results and what they are called today.
        report: What is printed of a run that has finished.

    Returns:
        All rows, old and new.

    Raises:
        InvalidArgumentError: If there are fewer than one jobs, the engine is unknown, or arguments
            do not match the keys, or the folder's runs have something else in common, or another
            process is writing to the folder.
        MissingDependencyError: If the engine is "ray" and it is not installed.
        ExceptionGroup: If runs failed. The others are stored, and a second call tries those again.
    """
    todo = list(dict.fromkeys(todo))
    if jobs < 1:
        raise InvalidArgumentError("jobs", jobs, "must be at least 1")
    if engine not in ("processes", "ray"):
        raise InvalidArgumentError("engine", engine, 'must be "processes" or "ray"')
    for arguments in todo:
        if len(arguments) != len(keys):
            raise InvalidArgumentError("todo", arguments, f"must hold one value for each of {keys}")
    with only_writer(path.parent):
        runs = read_rows(path, keys, aliases)
        if len(runs):
            check_shared(path.parent, shared, untold)
        done = set(runs[list(keys)].itertuples(index=False, name=None))
        missing = [arguments for arguments in todo if arguments not in done]
        if not missing:
            return runs
        meta = {**meta, **shared}
        version = commit_of_code()  # when the code is read, not when a run ends
        failures: list[Exception] = []
        started = time.monotonic()
        outcomes = (_in_processes if engine == "processes" else _with_ray)(run, missing, jobs)
        with closing(outcomes):
            for number_done, (arguments, rows) in enumerate(outcomes, start=1):
                name = ", ".join(map(str, arguments))
                if isinstance(rows, Exception):
                    rows.add_note(f"in the run {name}")
                    print(f"{name}: failed, {rows!r}", flush=True)
                    failures.append(rows)
                    continue
                columns = dict(zip((*keys, "commit"), (*arguments, version), strict=True))
                for number, (column, value) in enumerate(columns.items()):
                    rows.insert(number, column, value)
                runs = rows if runs.empty else pd.concat([runs, rows], ignore_index=True)
                runs = runs.sort_values([*keys, order], ignore_index=True)
                # The settings first: a process that is killed leaves no rows without them.
                write_json(finished_today(meta), path.with_name("meta.json"))
                write_rows(runs, path)
                left = (time.monotonic() - started) / number_done * (len(missing) - number_done)
                progress = f"{number_done} of {len(missing)}, {duration(left)} left"
                print(f"[{progress}] {name}: {report(rows)}", flush=True)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(missing)} runs failed", failures)
        return runs


def check_shared(folder: Path, shared: Mapping[str, Any], untold: Mapping[str, Any]) -> None:
    """Refuse a folder whose runs have something else in common.

    Args:
        folder: Has the runs.
        shared: See :func:`run_missing`.
        untold: See :func:`run_missing`.

    Raises:
        InvalidArgumentError: If its ``meta.json`` tells otherwise.
    """
    path = folder / "meta.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, value in shared.items():
        before = told.get(name, untold.get(name))
        if before != value:
            remedy = f"the runs in {folder} have {before}; take another folder for the output"
            raise InvalidArgumentError(name, value, remedy)


def _in_processes(run: Run, missing: Sequence[Arguments], jobs: int) -> Generator[Outcome]:
    """Runs in processes of this machine; after one was killed, the runs that waited go on."""
    waiting = deque(missing)
    while waiting:
        yield from _in_a_pool(run, waiting, jobs)


def _in_a_pool(run: Run, waiting: deque[Arguments], jobs: int) -> Generator[Outcome]:
    """Runs in one pool of processes, each on a core of its own where there are enough.

    A process that is killed breaks the pool: the runs that were going on fail, the others wait on.
    """
    context = get_context("spawn")
    cores: Any = context.SimpleQueue()
    available = sorted(_cores())
    for number in range(jobs):
        cores.put(available[number] if jobs <= len(available) else None)
    pool = ProcessPoolExecutor(jobs, context, initializer=_set_up_worker, initargs=(cores,))
    going_on: dict[Future[pd.DataFrame], Arguments] = {}
    outcomes: list[Outcome] = []
    try:
        while True:
            with suppress(BrokenProcessPool):
                while waiting and len(going_on) < jobs:
                    future = pool.submit(run, *waiting[0])
                    going_on[future] = waiting.popleft()
            yield from outcomes
            if not going_on:
                return
            done = wait(going_on, return_when=FIRST_COMPLETED).done
            outcomes = [(going_on.pop(future), _outcome(future)) for future in done]
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(future: Future[pd.DataFrame]) -> pd.DataFrame | Exception:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):  # All futures of a pool share theirs.
        return BrokenProcessPool("its process was killed, or that of a run beside it")
    if error is not None and not isinstance(error, Exception):
        raise error
    return error or future.result()


def _with_ray(run: Run, missing: Sequence[Arguments], jobs: int) -> Generator[Outcome]:
    """Runs as tasks of Ray: on the cluster that it is connected to, or else on this machine."""
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", "ray", 'The engine "ray"') from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address, num_cpus=None if address else jobs, log_to_driver=False)

    def on_one_thread(*arguments: Any) -> pd.DataFrame:
        _set_up_worker()
        return run(*arguments)

    task = ray.remote(num_cpus=1, max_retries=3)(on_one_thread)
    waiting = {task.remote(*arguments): arguments for arguments in missing}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            arguments = waiting.pop(done)
            try:
                yield arguments, ray.get(done)
            except ray.exceptions.RayError as error:
                yield arguments, error
    finally:
        for left in waiting:
            ray.cancel(left)


def duration(seconds: float) -> str:
    """A duration for people, such as "1 h 05 min".

    >>> duration(3900.0), duration(59.7), duration(59.0)
    ('1 h 05 min', '1 min', '59 s')
    """
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _set_up_worker(cores: Any = None) -> None:
    import torch  # on use: a benchmark with nothing left to run does not need it

    from textgym.memory import keep_freed_memory

    core = cores.get() if cores is not None else None
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    keep_freed_memory()


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
