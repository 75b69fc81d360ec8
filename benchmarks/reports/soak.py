"""Memory and drift over many episodes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy import stats

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "describe", "write"]

KEYS = ("length", "seed")


def write(output: Path) -> str:
    """Write ``table.md`` from ``soak.csv``; returns it.

    The longest soak is shown. The slope of the memory is that of a line through the second half:
    buffers grow at first.
    """
    rows = read_rows(output / "soak.csv", KEYS)
    rows = rows[rows["length"] == rows["length"].max()]
    half = rows[rows["episodes"] >= rows["episodes"].max() / 2]
    line = stats.linregress(half["episodes"], half["mib"])
    slope, margin = 1e5 * line.slope, 1e5 * 1.96 * line.stderr
    lines = [
        ["episodes", f"{rows['episodes'].max():,}"],
        ["memory at a tenth, MiB", f"{_memory_at(rows, 0.1):,.0f}"],
        ["memory at the half, MiB", f"{_memory_at(rows, 0.5):,.0f}"],
        ["memory at the end, MiB", f"{_memory_at(rows, 1.0):,.0f}"],
        ["slope of the second half, MiB per 100,000 episodes", f"{slope:+.1f} ± {margin:.1f}"],
        ["largest difference of a completion's log-probability", f"{rows['drift'].max():.1e}"],
        ["largest difference of a potential", f"{rows['potential_drift'].max():.1e}"],
    ]
    return write_tables(output, markdown_table(["soak", ""], lines))


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    return f"{run['episodes'].max():,} episodes, {run['mib'].iloc[-1]:.0f} MiB at the end"


def _memory_at(rows: pd.DataFrame, share: float) -> float:
    at = rows["episodes"].max() * share
    return float(rows.loc[(rows["episodes"] - at).abs().idxmin(), "mib"])
