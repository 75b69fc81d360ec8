"""What is measured of a run, from its rows alone."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from textgym.plotting import first_reached, trailing_mean

__all__ = [
    "ENDS",
    "WINDOW",
    "best_score",
    "gain_kept",
    "has_collapsed",
    "measure_run",
    "reached_at",
    "score_at_kl",
    "score_at_kl_budget",
]

WINDOW = 5
"""Iterations of the trailing means that say when a score is reached, and what the best is."""
ENDS = 10
"""Iterations at the end of a run that its final score averages over."""


def measure_run(run: pd.DataFrame, kl_budget: float, goal: float) -> dict[str, float]:
    """All measures of a run.

    Args:
        run: A row per iteration, in order.
        kl_budget: See :func:`score_at_kl_budget`.
        goal: A score that may be reached.

    Returns:
        ``area``, the score at the KL budget; ``final`` and ``kl``, means over the last iterations;
        ``best``; ``kept``, see :func:`gain_kept`; ``collapsed`` and ``alarmed``, 0 or 1, the
        latter NaN where no alarm is logged (:mod:`textgym.agents.alarm`); and, when the trailing
        mean reaches the goal, ``iterations``, ``tokens``, ``seconds`` and ``kl_there``, NaN if it
        does not.
    """
    last = run.tail(ENDS)
    iterations, kl_there = reached_at(run, goal)
    there = {"iterations": iterations, "kl_there": kl_there}
    for name, column in (("tokens", "timesteps"), ("seconds", "seconds")):
        got_there = not math.isnan(iterations)
        there[name] = float(run[column].iloc[int(iterations) - 1]) if got_there else math.nan
    return {
        "area": score_at_kl_budget(run, kl_budget, WINDOW),
        "final": float(last["score"].mean()),
        "kl": float(last["kl"].mean()),
        "best": best_score(run),
        "kept": gain_kept(run),
        "collapsed": float(has_collapsed(run)),
        "alarmed": float(run["alarm"].max()) if "alarm" in run else math.nan,
        **there,
    }


def reached_at(run: pd.DataFrame, goal: float) -> tuple[float, float]:
    """The first iteration whose trailing mean of the score reaches a goal, and that of the KL then.

    NaN and NaN if the run does not get there.
    """
    iteration = first_reached(run["score"].to_numpy(), goal, WINDOW)
    if iteration is None:
        return math.nan, math.nan
    return float(iteration), float(run["kl"].iloc[max(0, iteration - WINDOW) : iteration].mean())


def best_score(run: pd.DataFrame) -> float:
    """The highest trailing mean of the score."""
    return float(trailing_mean(run["score"].to_numpy(), WINDOW).max())


def gain_kept(run: pd.DataFrame) -> float:
    """The gain over the first score at the end of a run, over its highest; NaN if it had none."""
    start = float(run["score"].head(WINDOW).mean())
    gain = best_score(run) - start
    return (float(run["score"].tail(ENDS).mean()) - start) / gain if gain > 0 else math.nan


def has_collapsed(run: pd.DataFrame) -> bool:
    """Whether a run has lost more than half of what it had gained over its first score."""
    return gain_kept(run) < 0.5


def score_at_kl_budget(run: pd.DataFrame, budget: float, window: int) -> float:
    """The area under the score curve, over the number of iterations; KL above a budget counts less.

    An iteration counts its mean score, times budget/KL where the KL, a trailing mean, is above the
    budget. So a fast rise counts, and so does holding what was gained; what was bought by leaving
    the reference policy further than agreed does not. A score below 0 counts in full: a high KL
    must not make it better. NaN if an iteration has no score, or its trailing mean no KL.

    Args:
        run: A row per iteration, with ``score`` and ``kl``.
        budget: In the unit of ``kl``.
        window: Iterations of the trailing mean.
    """
    kl = run["kl"].rolling(window, min_periods=1).mean()
    score = run["score"]
    counted = score.where(score < 0, score * (budget / kl.clip(lower=budget)))
    return float(counted.mean(skipna=False))


def score_at_kl(run: pd.DataFrame, kl: float) -> float:
    """The trailing mean of the score where that of the KL first reaches a value.

    Interpolated between two iterations; NaN if the run stays below.

    Args:
        run: A row per iteration, with ``score`` and ``kl``.
        kl: In the unit of the column.
    """
    means = run[["kl", "score"]].rolling(WINDOW, min_periods=1).mean().to_numpy()
    (reached,) = np.nonzero(means[:, 0] >= kl)
    if not len(reached):
        return math.nan
    last = int(reached[0])
    if last == 0:
        return float(means[0, 1])
    (low, score), (high, next_score) = means[last - 1 : last + 1]
    return float(score + (next_score - score) * (kl - low) / (high - low))
