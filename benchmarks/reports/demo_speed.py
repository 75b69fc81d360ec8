"""Table of demo_speed.py, made from rows.csv and the number of iterations alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.timing import Comparison
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["write"]

LABELS = {"abc": "ABC", "shaping": "causal shaping"}
"""Labels of the demo's methods, if they are not their names."""


def write(output: Path, iterations: int) -> str:
    """Write table.md; returns it.

    Args:
        output: Folder of rows.csv.
        iterations: Of each method in the demo.
    """
    table = make_table(read_rows(output / "rows.csv", aliases={"method": LABELS}), iterations)
    (output / "table.md").write_text(table, encoding="utf-8")
    return table


def make_table(rows: pd.DataFrame, iterations: int) -> str:
    """Median seconds of either commit and their ratio, a row per method and one for all."""
    old, new = rows["commit"].unique()  # The earlier commit begins.
    wide = rows.pivot_table(index=["method", "round"], columns="commit", values="seconds")
    lines = []
    for method in (*rows["method"].unique(), "all"):
        of = wide.groupby("round").sum() if method == "all" else wide.loc[method]
        times = Comparison({name: of[name].tolist() for name in (old, new)})
        ratio, low, high = times.ratio(old, new)
        lines.append(
            [
                method,
                f"{times.median(old):.1f}",
                f"{times.median(new):.1f}",
                f"{ratio:.2f} ({low:.2f} to {high:.2f})",
            ]
        )
    text = [
        f"Seconds of training, {iterations} iterations, median of {rows['round'].nunique()} rounds "
        "in turn; ratio of the rounds with the 95% interval of its median.",
        "",
        *markdown_table(["method", old, new, "ratio"], lines),
    ]
    return "\n".join(text) + "\n"
