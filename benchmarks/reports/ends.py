"""What a run has gained: its mean score in the first and in the last 256 episodes."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["HEADER", "describe", "ends_row", "rolling_score"]

ROWS = 4
"""Rows at either end of a run that are averaged, of 64 episodes each."""
HEADER = ("steps", "mean score, first → last 256 episodes", "gain")


def _ends(run: pd.DataFrame) -> tuple[float, float]:
    return run["score"].head(ROWS).mean(), run["score"].tail(ROWS).mean()


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
