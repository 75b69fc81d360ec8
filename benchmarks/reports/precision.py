"""Table and figure of precision.py, made from its runs.csv and that of learning.py."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy.stats import ttest_ind

from textgym.benchmark.curves import draw_seeds, new_figure, save
from textgym.benchmark.measures import ENDS, WINDOW
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

from .learning import ends_of

__all__ = ["CONDITIONS", "DTYPES", "KEYS", "write"]

KEYS = ("condition", "dtype", "seed")
CONDITIONS = ("sparse", "ABC")
DTYPES = ("float32", "bfloat16")
BEFORE = "float32, before"
COLORS = {BEFORE: "#999999", "float32": "#0072B2", "bfloat16": "#E69F00"}


def write(output: Path, before: Path) -> str:
    """Write table.md and learning_curves.png; returns the table.

    Args:
        output: Folder of runs.csv.
        before: The runs.csv of learning.py.
    """
    runs = with_those_before(read_rows(output / "runs.csv"), read_rows(before))
    table = make_table(runs)
    (output / "table.md").write_text(table, encoding="utf-8")
    draw(runs, output / "learning_curves.png")
    return table


def with_those_before(runs: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """The runs of today and, with "float32, before" as their dtype, those of learning.py."""
    before = before[before["condition"].isin(CONDITIONS) & before["seed"].isin(runs["seed"])]
    return pd.concat([before.assign(dtype=BEFORE), runs], ignore_index=True)


def make_table(runs: pd.DataFrame) -> str:
    """A Markdown table with every seed's number."""
    ends = ends_of(runs, list(KEYS))
    whole = runs.groupby(list(KEYS))[["seconds", "iteration"]].max()
    rows = []
    for condition in CONDITIONS:
        for dtype in (BEFORE, *DTYPES):
            of, took = ends.loc[condition, dtype], whole.loc[condition, dtype]
            test = ttest_ind(of["score"], ends.loc[condition, BEFORE]["score"], equal_var=False)
            rows.append(
                [
                    condition,
                    dtype,
                    ", ".join(f"{score:+.2f}" for score in of["score"]),
                    f"{of['score'].mean():+.2f}",
                    "" if dtype == BEFORE else f"{test.pvalue:.2f}",
                    f"{of['kl'].mean():.1f}",
                    f"{(took['seconds'] / took['iteration']).mean():.2f}",
                ]
            )
    header = ["condition", "arithmetic", "score", "mean", "p", "KL", "seconds per iteration"]
    text = [
        f"Mean score and KL to the reference policy (nats per episode) over the last {ENDS} "
        "iterations, per seed and in the mean. p: of Welch's t-test, over seeds, that the mean "
        "score is that of before; with three seeds it sees large differences only. Seconds per "
        "iteration: of runs that shared the machine, two at a time.",
        "",
        *markdown_table(header, rows),
    ]
    return "\n".join(text) + "\n"


def draw(runs: pd.DataFrame, path: Path) -> None:
    """Scores of every run, a panel per condition."""
    figure = new_figure(11, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, condition in zip(panels, CONDITIONS, strict=True):
        for dtype, color in COLORS.items():
            rows = runs[(runs["condition"] == condition) & (runs["dtype"] == dtype)]
            draw_seeds(axes, rows, "score", WINDOW, color, dtype)
        axes.set_title(condition)
        axes.set_xlabel("iteration of 16 episodes")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"mean score, trailing mean over {WINDOW}")
    panels[0].legend(frameon=False)
    save(figure, path)
