"""Table and figures of learning.py, made from runs.csv alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.comparison import NOTE, compare
from textgym.benchmark.curves import draw_seeds, new_figure, save
from textgym.benchmark.measures import ENDS, WINDOW, best_score
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table
from textgym.plotting import first_reached

__all__ = ["ALIASES", "COLORS", "KEYS", "ends_of", "write"]

KEYS = ("condition", "seed")
COLORS = {
    "sparse": "#0072B2",
    "sparse, λ = 1": "#56B4E9",
    "uniform credit": "#CC79A7",
    "random credit": "#999999",
    "shuffled ABC": "#000000",
    "ABC": "#E69F00",
    "causal shaping": "#009E73",
}
"""The conditions, in the order of the table."""
ALIASES = {"condition": {"causal attention shaping": "causal shaping"}}
"""What conditions were called in earlier results."""


def write(output: Path, env_id: str, num_envs: int) -> str:
    """Write table.md, statistics.md and learning_curves.png; returns the table.

    Args:
        output: Folder of runs.csv.
        env_id: What was trained on.
        num_envs: Episodes per iteration.
    """
    runs = read_rows(output / "runs.csv", aliases=ALIASES)
    table = make_table(runs)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "statistics.md").write_text(make_statistics(runs), encoding="utf-8")
    draw(runs, env_id, num_envs, output / "learning_curves.png")
    return table


def ends_of(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean score and KL over the last iterations, a row per run."""
    last = runs[runs["iteration"] > runs["iteration"].max() - ENDS]
    return last.groupby(keys)[["score", "kl"]].mean()


def make_table(runs: pd.DataFrame) -> str:
    """A Markdown table with every seed's number."""
    best = {
        seed: best_score(rows) for seed, rows in runs[runs["condition"] == "sparse"].groupby("seed")
    }
    lines = []
    for condition in COLORS:
        seeds = dict(list(runs[runs["condition"] == condition].groupby("seed")))
        if not seeds:
            continue
        last = [rows["score"].tail(ENDS).mean() for rows in seeds.values()]
        reached = [first_reached(rows["score"], best[seed], WINDOW) for seed, rows in seeds.items()]
        lines.append(
            [
                condition,
                ", ".join(f"{rows['score'].head(ENDS).mean():+.2f}" for rows in seeds.values()),
                ", ".join(f"{score:+.2f}" for score in last),
                f"{sum(last) / len(last):+.2f}",
                ", ".join(f"{rows['kl'].tail(ENDS).mean():.1f}" for rows in seeds.values()),
                ", ".join(str(iteration or "–") for iteration in reached),
            ]
        )
    header = ["condition", "first", "last", "mean of last", "KL", "iterations to sparse's best"]
    text = [
        f"Mean score of the first and the last {ENDS} iterations, KL to the reference policy over "
        f"the last {ENDS} (nats per episode), and the first iteration whose trailing mean score "
        f"over {WINDOW} iterations reaches the best of sparse reward under the same seed. "
        "Each cell lists the seeds in order; – means not reached.",
        "",
        *markdown_table(header, lines),
    ]
    return "\n".join(text) + "\n"


def make_statistics(runs: pd.DataFrame) -> str:
    """A Markdown table of how each condition compares with sparse reward."""
    ends = ends_of(runs, list(KEYS))["score"]
    scores = {c: ends[c] for c in COLORS if c in ends.index.get_level_values(0)}
    lines = [NOTE.format(what=f"{ENDS} iterations"), "", *compare(scores, "sparse")]
    return "\n".join(lines) + "\n"


def draw(runs: pd.DataFrame, env_id: str, num_envs: int, path: Path) -> None:
    """Score and KL of every run."""
    figure = new_figure(11, 4.6)
    columns = {"score": "mean score", "kl": "KL to the reference policy (nats per episode)"}
    panels = figure.subplots(1, 2)
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for condition, color in COLORS.items():
            rows = runs[runs["condition"] == condition]
            if not rows.empty:
                draw_seeds(axes, rows, column, WINDOW, color, condition)
        axes.set_xlabel(f"iteration of {num_envs} episodes")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    figure.suptitle(
        f"Bundled PPO on {env_id}, {runs['seed'].nunique()} seeds "
        f"(thin: each seed, strong: their mean; trailing means over {WINDOW})"
    )
    save(figure, path)
