"""The table and the figure of what beginnings of texts bring to a reward model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "PREFIX_SHARES", "describe", "write"]

KEYS = ("prefix_share", "seed")
PREFIX_SHARES = (0.0, 0.5)
_COLORS = {0.0: "#0072B2", 0.5: "#D55E00"}
_MEASURES = {
    "accuracy": "accuracy",
    "explained": "variance explained",
    "r_squared": "squared correlation",
}
_IN_TABLE = ("accuracy", "explained")


def write(output: Path) -> str:
    """Write ``table.md`` and ``prefixes.png`` from ``runs.csv``; returns the table."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = []
    for share, rows in runs.groupby("share"):
        cells = [f"{share:.0%}"]
        for measure in _IN_TABLE:
            for prefix_share in PREFIX_SHARES:
                values = rows.loc[rows["prefix_share"] == prefix_share, measure]
                cells.append(f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})")
        lines.append(cells)
    header = ["share of the text"]
    header += [
        f"{_MEASURES[measure]}, {prefix_share:.0%} cut"
        for measure in _IN_TABLE
        for prefix_share in PREFIX_SHARES
    ]
    _draw(runs, output / "prefixes.png")
    return write_tables(output, markdown_table(header, lines))


def _draw(runs: pd.DataFrame, path: Path) -> None:
    """A panel per measure: a faint line per seed, a strong one for their mean."""
    figure = new_figure(7.5, 3.0)
    for axes, (measure, label) in zip(figure.subplots(1, 3), _MEASURES.items(), strict=True):
        for prefix_share in PREFIX_SHARES:
            rows = runs[runs["prefix_share"] == prefix_share]
            table = rows.pivot_table(index="share", columns="seed", values=measure)
            axes.plot(table.index, table, color=_COLORS[prefix_share], alpha=0.25, linewidth=0.8)
            axes.plot(
                table.index,
                table.mean(axis=1),
                color=_COLORS[prefix_share],
                label=f"{prefix_share:.0%} of the texts cut",
            )
        axes.set_xlabel("share of the text read")
        axes.set_title(label, fontsize=9)
    figure.axes[0].legend(fontsize=7, loc="lower right")
    save(figure, path)


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    half = run[run["share"] == 0.5].iloc[0]
    numbers = f"accuracy {half['accuracy']:.2f}, explained {half['explained']:.2f}"
    return f"at half of the text: {numbers}"
