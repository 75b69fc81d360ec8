"""What a run has gained: its mean score in the first and in the last 256 episodes.

A row of a run is the mean of 64 episodes; the last one, of those that are left over. So it counts
by their number.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["HEADER", "describe", "ends_row", "mean_of_last", "rolling_score"]

ROWS = 4
"""Rows of 64 episodes each that are averaged."""
EPISODES = 64 * ROWS
HEADER = ("steps", "mean score, first → last 256 episodes", "gain")


def mean_of_last(run: pd.DataFrame, number: int) -> float:
    """The mean score of the last episodes; of a row that is only needed in part, its own mean.

    Args:
        run: A row per chunk of episodes, with the columns episodes and score.
        number: Of episodes.
    """
    later = run["episodes"].sum() - run["episodes"].cumsum()
    weights = (number - later).clip(lower=0).clip(upper=run["episodes"])
    return float(np.average(run["score"], weights=weights))


def _ends(run: pd.DataFrame) -> tuple[float, float]:
    return run["score"].head(ROWS).mean(), mean_of_last(run, EPISODES)


def describe(run: pd.DataFrame) -> str:
    """A finished run in a few words."""
    return "{:+.2f} → {:+.2f}".format(*_ends(run))


def ends_row(runs: pd.DataFrame) -> list[str]:
    """The cells under :data:`HEADER`: every seed's ends, and their mean gain.

    Args:
        runs: Rows of all seeds, with the columns seed, timesteps and score.
    """
    of_seeds = [run for _, run in runs.groupby("seed")]
    gains = [last - first for first, last in map(_ends, of_seeds)]
    return [
        f"{runs['timesteps'].max():,}",
        ", ".join(map(describe, of_seeds)),
        f"{np.mean(gains):+.2f}",
    ]


def rolling_score(run: pd.DataFrame) -> pd.Series:
    """Mean score of 256 episodes, at each row from the fourth on."""
    return run["score"].rolling(ROWS).mean()
