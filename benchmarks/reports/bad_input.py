"""Table of bad_input.py, made from outcomes.csv alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["write"]

OUTCOMES = {
    "clear error": "clear error",
    "accepted for a reason": "accepted for a reason",
    "accepted in silence": "silent",
    "raw error": "raw error",
    "error of ours that names something else": "names something else",
}
"""The outcomes in the order of the columns, and the headings."""


def write(output: Path) -> str:
    """Write table.md; returns it.

    Args:
        output: Folder of outcomes.csv.
    """
    table = make_table(read_rows(output / "outcomes.csv"))
    (output / "table.md").write_text(table, encoding="utf-8")
    return table


def make_table(rows: pd.DataFrame) -> str:
    """Number of cases, a row per area and one for all."""
    counts = rows.pivot_table(index="area", columns="outcome", values="cases", aggfunc="sum")
    counts = counts.reindex(columns=list(OUTCOMES)).fillna(0).astype(int)
    counts.loc["all"] = counts.sum()
    lines = [
        [area, f"{row.sum():,}", *(f"{cases:,}" for cases in row)]
        for area, row in counts.iterrows()
    ]
    return "\n".join(markdown_table(["bad input", "cases", *OUTCOMES.values()], lines)) + "\n"
