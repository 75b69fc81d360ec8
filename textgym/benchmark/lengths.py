"""How fast methods are on completions of several lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .curves import new_figure, save
from .methods import METHODS
from .plan import TASKS
from .statistics import stratified_bootstrap

__all__ = ["draw_lengths", "mean_length"]


def mean_length(task: str) -> float | None:
    """The middle of a task's token budgets; None for a task without budgets of its own."""
    budgets = TASKS[task].env_kwargs
    if "max_new_tokens" not in budgets:
        return None
    return (budgets["min_new_tokens"] + budgets["max_new_tokens"]) / 2


def draw_lengths(measured: pd.DataFrame, baseline: str, path: Path) -> bool:
    """Draw the share of the baseline's iterations against the length of the completions.

    Points are interquartile means over seeds, with a 95% interval by the bootstrap, which is too
    narrow with few seeds.

    Args:
        measured: What :func:`textgym.benchmark.report.measure_all` returned.
        baseline: What the others are compared with.
        path: Of the picture.

    Returns:
        Whether there is anything to draw: more than one length, and another method.
    """
    lengths = measured["task"].map(mean_length)
    rows = measured.assign(tokens=lengths).dropna(subset=["tokens", "share"])
    rows = rows[rows["method"] != baseline]
    if rows["tokens"].nunique() < 2:
        return False
    figure = new_figure(6.5, 4.8)
    axes = figure.subplots()
    middle = (rows["method"].nunique() - 1) / 2
    for number, (method, of_method) in enumerate(rows.groupby("method", sort=False)):
        estimates = {
            tokens: stratified_bootstrap(one["share"])
            for tokens, one in of_method.groupby("tokens")
        }
        beside = [tokens + number - middle for tokens in estimates]
        values = [one.value for one in estimates.values()]
        # Of equal runs, a bound may miss the value by rounding; a bar has no negative length.
        below = np.maximum([one.value - one.low for one in estimates.values()], 0.0)
        above = np.maximum([one.high - one.value for one in estimates.values()], 0.0)
        color = METHODS[str(method)].color if method in METHODS else None
        axes.errorbar(
            beside, values, yerr=[below, above], fmt="o-", capsize=3, color=color,
            label=method,
        )  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("tokens of a completion")
    axes.set_ylabel(f"iterations to the best score of {baseline}, over its own")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
    return True
