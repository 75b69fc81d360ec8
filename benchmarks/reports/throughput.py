"""Tables and figure of throughput.py, made from rows.json alone."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.tables import markdown_table

__all__ = ["PARTS", "read", "write"]

PARTS = (
    "readout",
    "lean",
    "rollout",
    "peers",
    "stages",
    "iteration",
    "race",
    "environment",
    "machine",
    "choices",
    "sb3",
    "growth",
)
"""The parts, in the order of the tables."""
HEADER = ("case", "ratio of", "result", "interval", "goal", "met")
COMPARISONS = {">=": operator.ge, "<=": operator.le}
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of rows.json; none if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write(output: Path) -> str:
    """Write table.md (all ratios), goals.md (those with a goal) and a figure; returns the table."""
    rows = read(output / "rows.json")
    table = make_table(rows)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "goals.md").write_text(make_goals(rows), encoding="utf-8")
    draw(rows, output / "throughput.png")
    return table


def is_met(row: Row) -> bool | None:
    """Whether a ratio reaches its goal; None without one."""
    if row["goal"] is None:
        return None
    comparison, number = row["goal"].split()
    return COMPARISONS[comparison](row["ratio"], float(number))


def make_table(rows: list[Row]) -> str:
    """All ratios, a table per part, with goals where there are any."""
    lines = [
        "Ratios: median over interleaved rounds, with the 95% interval of the median. Raw seconds "
        "are in rows.json.",
    ]
    for part in PARTS:
        of_part = [_cells(row) for row in rows if row["part"] == part]
        if of_part:
            lines += ["", f"### {part}", "", *markdown_table(HEADER, of_part)]
    return "\n".join(lines) + "\n"


def make_goals(rows: list[Row]) -> str:
    """The ratios that have a goal."""
    cells = [_cells(row) for row in rows if row["goal"] is not None]
    return "\n".join(markdown_table(HEADER, cells)) + "\n"


def _cells(row: Row) -> list[str]:
    met = {True: "yes", False: "**no**", None: ""}[is_met(row)]
    ratio, low, high = (
        f"{row[name]:{'.3f' if row[name] < 10 else '.3g'}}" for name in ("ratio", "low", "high")
    )
    return [row["case"], row["quantity"], ratio, f"{low} to {high}", row["goal"] or "", met]


def draw(rows: list[Row], path: Path) -> None:
    """Ratios with a goal, on one scale: how far each is on the right side of its goal."""
    rows = [row for row in rows if row["goal"] is not None][::-1]
    figure = new_figure(9, 1 + 0.28 * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        comparison, number = row["goal"].split()
        sign = 1 if comparison == ">=" else -1
        low, middle, high = (
            (row[name] / float(number)) ** sign for name in ("low", "ratio", "high")
        )
        color = "C2" if is_met(row) else "C3"
        axes.plot([low, high], [y, y], color=color, linewidth=2)
        axes.plot(middle, y, "o", color=color)
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(rows)),
        [f"{row['case']}: {row['quantity']} ({row['goal']})" for row in rows],
        fontsize=7,
    )
    axes.set_xlabel("result / goal (less is better: goal / result)")
    axes.margins(y=0.01)
    save(figure, path)
