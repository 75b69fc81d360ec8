"""Successive halving: many settings get short runs, the better ones longer runs on new seeds.

Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
arXiv 1502.07943. Each rung starts its runs afresh under seeds of its own, instead of continuing
those of the rung before: so what was lucky once has to prove itself again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

__all__ = ["Rung", "best_settings", "halve"]


@dataclass(frozen=True)
class Rung:
    """Runs of equal length, after which the best settings go on."""

    iterations: int
    seeds: tuple[int, ...]
    keep: int  # settings of each method


def best_settings(
    runs: pd.DataFrame, value_of: Callable[[pd.DataFrame], float], number: int
) -> dict[str, list[str]]:
    """By method, the settings with the highest value, averaged over seeds; the best first.

    Args:
        runs: With ``method``, ``setting``, ``seed`` and what ``value_of`` needs.
        value_of: The value of one run.
        number: How many of each method.
    """
    if runs.empty:
        return {}
    columns = ["method", "setting", "seed"]
    values = pd.Series({key: value_of(run) for key, run in runs.groupby(columns)}, name="value")
    means = values.rename_axis(columns).groupby(columns[:2]).mean().sort_values(ascending=False)
    return {
        method: list(of_method.index.get_level_values("setting")[:number])
        for method, of_method in means.groupby(level="method", sort=False)
    }


def halve(
    rungs: Sequence[Rung],
    settings: Mapping[str, Sequence[str]],
    run_all: Callable[[list[tuple[str, str, int, int]]], pd.DataFrame],
    value_of: Callable[[pd.DataFrame], float],
) -> dict[str, list[str]]:
    """Run all rungs; returns the settings that the last one keeps, by method.

    Args:
        rungs: In order.
        settings: What the first rung tries, by method.
        run_all: Makes sure that these runs exist (method, setting, iterations, seed), and returns
            the rows of all runs, of earlier rungs, too.
        value_of: The value of one run.
    """
    going_on = {method: list(tried) for method, tried in settings.items()}
    for rung in rungs:
        keys = [
            (method, setting, rung.iterations, seed)
            for seed in rung.seeds
            for method, tried in going_on.items()
            for setting in tried
        ]
        rows = run_all(keys)
        # Runs of earlier rungs of the same length count, too.
        wanted = pd.DataFrame(keys, columns=["method", "setting", "iterations", "seed"])
        finalists = wanted[["method", "setting", "iterations"]].drop_duplicates()
        going_on = best_settings(rows.merge(finalists), value_of, rung.keep)
    return going_on
