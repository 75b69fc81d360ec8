"""One process and two: curves and times."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables
from textgym.plotting import plot_learning_curves

__all__ = ["KEYS", "SETUPS", "describe", "write"]

KEYS = ("processes", "threads", "seed")
SETUPS = ((1, 1), (1, 2), (2, 1))
"""Number of processes, and threads of each."""
ENDS = 5
"""Iterations at either end that scores average over."""


def write(output: Path) -> str:
    """Write ``table.md`` and ``curves.png`` from ``runs.csv``; returns the table."""
    runs = read_rows(output / "runs.csv", KEYS)
    runs = runs[runs["iteration"] <= runs.groupby(list(KEYS))["iteration"].max().min()]
    alone = _seconds(runs, SETUPS[0])
    lines, curves = [], {}
    for setup in SETUPS:
        run = _of(runs, setup)
        seconds = _seconds(runs, setup)
        speedups = alone / seconds  # of the same seed
        lines.append(
            [
                _name(setup),
                str(run["seed"].nunique()),
                _mean_and_range(run, "score", "head"),
                _mean_and_range(run, "score", "tail"),
                _mean_and_range(run, "kl", "tail"),
                f"{seconds.median():.2f}",
                _shown(speedups.tolist(), ""),
            ]
        )
        means = run.groupby("iteration")[["score", "kl"]].mean().reset_index()
        curves[_name(setup)] = [
            {"time/iteration": row.iteration, "rollout/score_mean": row.score, "rollout/kl": row.kl}
            for row in means.itertuples()
        ]
    header = ["", "seeds", "score, first", "score, last", "KL, last", "s per iteration", "speedup"]
    title = f"Prefix score, 40 to 60 tokens; mean of {runs['seed'].nunique()} seeds"
    plot_learning_curves(curves, output / "curves.png", title)
    return write_tables(output, markdown_table(header, lines))


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    seconds = run["seconds"].max() / len(run)
    return f"{run['score'].tail(ENDS).mean():+.2f} at the end, {seconds:.2f} s per iteration"


def _name(setup: tuple[int, int]) -> str:
    processes, threads = setup
    process = "1 process" if processes == 1 else f"{processes} processes"
    thread = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{process} of {thread}" if processes == 1 else f"{process} of {thread} each"


def _of(runs: pd.DataFrame, setup: tuple[int, int]) -> pd.DataFrame:
    return runs[(runs["processes"] == setup[0]) & (runs["threads"] == setup[1])]


def _seconds(runs: pd.DataFrame, setup: tuple[int, int]) -> pd.Series:
    """Median seconds of an iteration, by seed."""
    ordered = _of(runs, setup).sort_values(["seed", "iteration"])
    each = ordered.groupby("seed")["seconds"].diff().fillna(ordered["seconds"])
    return each.groupby(ordered["seed"]).median()


def _mean_and_range(run: pd.DataFrame, column: str, end: str) -> str:
    by_seed = [getattr(one[column], end)(ENDS).mean() for _, one in run.groupby("seed")]
    return _shown(by_seed, "+" if column == "score" else "")


def _shown(values: list[float], sign: str) -> str:
    """The mean; with several seeds, their range, too."""
    mean, low, high = sum(values) / len(values), min(values), max(values)
    span = f" ({low:{sign}.2f} to {high:{sign}.2f})" if len(values) > 1 else ""
    return f"{mean:{sign}.2f}{span}"
