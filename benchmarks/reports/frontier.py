"""Score at equal KL: the tables and the figure of tuning.py's frontier."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.frontier import estimate_at_kl
from textgym.benchmark.statistics import stratified_bootstrap
from textgym.benchmark.tables import markdown_table
from training.plan import METHODS, TASKS

__all__ = ["draw", "make_tables"]

_EQUAL_KL = (15.0, 20.0, 25.0, 30.0, 35.0)


def make_tables(runs: pd.DataFrame) -> str:
    """Where each method ends under each coefficient of the KL penalty, and at equal KL."""
    ends = _ends(runs)
    lines = []
    for (method, kl_coef), rows in ends.groupby(["method", "kl_coef"], sort=False):
        score = stratified_bootstrap(rows.set_index("seed")["fresh_score"])
        means = rows[["fresh_kl", "fresh_outside", "fresh_distinct_2"]].mean()
        lines.append([method, f"{kl_coef:g}", str(score), *(f"{mean:.2f}" for mean in means)])
    equal = [
        [method, *(estimate_at_kl(rows, kl) for kl in _EQUAL_KL)]
        for method, rows in ends.groupby("method", sort=False)
    ]
    text = [
        f"512 fresh completions at the end of the runs, {runs['seed'].nunique()} seeds. Each "
        "method at its best setting, but for the coefficient of the KL penalty.",
        "",
        *markdown_table(
            ["method", "KL coefficient", "score", "KL", "outside scorer", "distinct-2"], lines
        ),
        "",
        "The score at a given KL, in nats, interpolated under each seed between the coefficients "
        "on either side of it; interquartile mean and 95% bootstrap interval. Seeds without a "
        "coefficient on one side are left out (–: all of them).",
        "",
        *markdown_table(["method", *(f"KL {kl:.0f}" for kl in _EQUAL_KL)], equal),
    ]
    return "\n".join(text) + "\n"


def draw(task: str, runs: pd.DataFrame, path: Path) -> None:
    """Score against KL at the end of the runs: a line per method, a point per coefficient."""
    figure = new_figure(6.5, 4.8)
    axes = figure.subplots()
    for method, rows in _ends(runs).groupby("method", sort=False):
        color = METHODS[method].color
        means = rows.groupby("kl_coef")[["fresh_kl", "fresh_score"]].mean()
        axes.plot(rows["fresh_kl"], rows["fresh_score"], ".", color=color, alpha=0.4)
        axes.plot(means["fresh_kl"], means["fresh_score"], "o-", color=color, label=method)
    axes.set_xlabel("KL to the reference policy (nats per completion)")
    axes.set_ylabel("score of 512 fresh completions")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        f"{TASKS[task].title}, after "
        f"{TASKS[task].iterations} iterations, with three coefficients of the KL penalty.\n"
        f"Small dots: {runs['seed'].nunique()} seeds; large dots: their means",
        fontsize=9,
    )
    save(figure, path)


def _ends(runs: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run, in the order of the methods and the coefficients."""
    ends = runs[runs["iteration"] == runs["iterations"]]
    ends = ends.assign(kl_coef=[json.loads(setting)["kl_coef"] for setting in ends["setting"]])
    order = {method: number for number, method in enumerate(METHODS)}
    return ends.sort_values(["method", "kl_coef", "seed"], key=lambda c: c.map(order).fillna(c))
