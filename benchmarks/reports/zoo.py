"""Tables of zoo.py, made from its rows alone, and the settings that a search tries."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

from .ends import HEADER, ROWS, describe, ends_row

__all__ = [
    "ALGORITHMS",
    "KEYS",
    "NUM_TRIALS",
    "SEARCH_KEYS",
    "best_trial",
    "describe",
    "draw_settings",
    "write",
]

KEYS = ("algorithm", "seed")
SEARCH_KEYS = ("algorithm", "trial")
ALGORITHMS = ("ppo", "a2c", "dqn")
NUM_TRIALS = 16
_GAE = {"gae_lambda": (0.8, 0.9, 0.95, 1.0), "ent_coef": (0.0, 0.003, 0.01, 0.03)}
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "ppo": {
        "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
        "n_steps": (16, 32, 64, 128),
        "batch_size": (64, 128, 256),
        "n_epochs": (4, 10),
        **_GAE,
    },
    "a2c": {"learning_rate": (3e-4, 1e-3, 3e-3), "n_steps": (5, 8, 16, 32), **_GAE},
    "dqn": {
        "learning_rate": (1e-4, 3e-4, 1e-3),
        "batch_size": (64, 128, 256),
        "gradient_steps": (1, 2, 4),
        "target_update_interval": (250, 500, 1000),
        "exploration_fraction": (0.1, 0.3, 0.5),
    },
}
"""What a search draws from, by algorithm and argument."""


def draw_settings(algorithm: str, trial: int) -> dict[str, Any]:
    """The arguments that a trial has of its own, each drawn uniformly from its values.

    Trial 0 has none: it is the file as it was when the search ran.
    """
    if trial == 0:
        return {}
    generator = random.Random(f"{algorithm} {trial}")
    return {name: generator.choice(values) for name, values in SPACES[algorithm].items()}


def best_trial(trials: pd.DataFrame, algorithm: str) -> int:
    """The trial of an algorithm with the highest mean score at its end."""
    return int(_ends(trials, algorithm).idxmax())


def write(output: Path) -> str:
    """Write ``table.md`` from ``runs.csv`` and ``search/runs.csv``; returns it."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = [
        [name.upper(), *ends_row(of_algorithm)]
        for name in ALGORITHMS
        if len(of_algorithm := runs[runs["algorithm"] == name])
    ]
    tables = [markdown_table(["algorithm", *HEADER], lines)]
    if (output / "search" / "runs.csv").exists():
        trials = read_rows(output / "search" / "runs.csv", SEARCH_KEYS)
        tables.append(_search_table(trials))
    return write_tables(output, *tables)


def _search_table(trials: pd.DataFrame) -> list[str]:
    lines = []
    for name in ALGORITHMS:
        ends = _ends(trials, name)
        settings = draw_settings(name, best_trial(trials, name))
        shown = ", ".join(f"{argument} {value:g}" for argument, value in settings.items())
        scores = [f"{score:+.2f}" for score in (ends[0], ends.median(), ends.max())]
        lines.append([name.upper(), str(len(ends)), *scores, shown or "the first guess"])
    header = ["search", "trials", "first guess", "median", "best", "settings of the best"]
    return markdown_table(header, lines)


def _ends(trials: pd.DataFrame, algorithm: str) -> pd.Series:
    of_algorithm = trials[trials["algorithm"] == algorithm].groupby("trial")["score"]
    return of_algorithm.apply(lambda scores: scores.tail(ROWS).mean())
