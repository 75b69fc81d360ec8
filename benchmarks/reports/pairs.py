"""The table of model pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "describe", "write"]

KEYS = ("pair", "seed")
ENDS = 5
"""Iterations at either end that the scores average over."""


def write(output: Path) -> str:
    """Write ``table.md`` from ``runs.csv``; returns it."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = []
    has_seeds = runs["seed"].nunique() > 1
    for (pair, seed), run in runs.groupby(list(KEYS), sort=False):
        first = run.iloc[0]
        lines.append(
            [
                f"{pair}, seed {seed}" if has_seeds else str(pair),
                _millions(first["policy_parameters"]),
                _millions(first["trained_parameters"]),
                _millions(first["reward_model_parameters"]),
                f"{first['policy_vocabulary']:,} / {first['reward_model_vocabulary']:,}",
                describe(run),
                f"{run['kl'].tail(ENDS).mean():.1f}",
                f"{run['seconds'].max() / len(run):.1f}",
                f"{first['peak_mib'] / 1024:.1f}",
            ]
        )
    header = ["policy + reward model", "policy", "trained", "reward model", "vocabularies"]
    header += ["score", "KL", "s per iteration", "GiB"]
    return write_tables(output, markdown_table(header, lines))


def _millions(number: float) -> str:
    return f"{number / 1e6:.1f} M"


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    return f"{run['score'].head(ENDS).mean():+.2f} → {run['score'].tail(ENDS).mean():+.2f}"
