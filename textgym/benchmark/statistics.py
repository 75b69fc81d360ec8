"""Interquartile means, bootstrap intervals and comparisons of runs.

The methods are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", arXiv 2108.13264, and of its package rliable, which does not import beside
current versions of pandas and arch.

Scores are (num_runs, num_tasks), or (num_runs,) for a single task. All intervals hold 95%.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, trim_mean
from scipy.stats import t as student

from textgym.errors import InvalidArgumentError

__all__ = [
    "Estimate",
    "bootstrap_mean",
    "interquartile_mean",
    "paired_difference",
    "probability_of_improvement",
    "stratified_bootstrap",
    "student_half_width",
]

Matrix = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number with the bounds of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def interquartile_mean(scores: ArrayLike) -> float:
    """The mean of the middle half of all scores, over runs and tasks together.

    A quarter of the scores is dropped at either end, rounded down: of three scores none is.
    """
    return float(trim_mean(_matrix("scores", scores), 0.25, axis=None))


def stratified_bootstrap(scores: ArrayLike, num_samples: int = 2000, seed: int = 0) -> Estimate:
    """The interquartile mean and its percentile interval; runs are drawn anew within each task.

    Args:
        scores: (num_runs, num_tasks).
        num_samples: Number of bootstrap samples.
        seed: Of the samples.
    """

    def of_tasks(*tasks: Matrix, axis: int = -1) -> Matrix:
        return trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis)

    return _bootstrap(of_tasks, list(_matrix("scores", scores).T), num_samples, seed)


def paired_difference(
    scores: ArrayLike, others: ArrayLike, num_samples: int = 2000, seed: int = 0
) -> Estimate:
    """The interquartile mean of ``scores - others``, run by run.

    Rows of equal number belong together, such as runs of equal seed, and are drawn together.

    Args:
        scores: (num_runs, num_tasks).
        others: Same shape.
        num_samples: Number of bootstrap samples.
        seed: Of the samples.
    """
    first, second = _matrix("scores", scores), _matrix("others", others)
    if first.shape != second.shape:
        raise InvalidArgumentError(
            "others", second.shape, f"pairs need the shape of scores, {first.shape}"
        )
    return stratified_bootstrap(first - second, num_samples, seed)


def probability_of_improvement(
    scores: ArrayLike, others: ArrayLike, num_samples: int = 2000, seed: int = 0
) -> Estimate:
    """How probably a run of one method scores higher than a run of the other, mean over tasks.

    All pairs of runs are compared, and a tie counts half: the Mann-Whitney U statistic over the
    number of pairs.

    Args:
        scores: (num_runs, num_tasks).
        others: (num_other_runs, num_tasks).
        num_samples: Number of bootstrap samples.
        seed: Of the samples.
    """
    first, second = _matrix("scores", scores), _matrix("others", others)
    num_tasks = first.shape[1]
    if second.shape[1] != num_tasks:
        raise InvalidArgumentError(
            "others", second.shape, f"needs as many tasks (columns) as scores, {num_tasks}"
        )

    def of_tasks(*tasks: Matrix, axis: int = -1) -> Matrix:
        pairs = zip(tasks[:num_tasks], tasks[num_tasks:], strict=True)
        return np.mean([_share_of_wins(a, b) for a, b in pairs], axis=0)

    return _bootstrap(of_tasks, [*first.T, *second.T], num_samples, seed)


def _share_of_wins(a: Matrix, b: Matrix) -> Matrix:
    """Over all pairs of runs, which are the last axis of either array."""
    difference = a[..., :, None] - b[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1))


def bootstrap_mean(values: ArrayLike, num_samples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of many values and its percentile interval."""
    array = _matrix("values", values)[:, 0]
    if np.ptp(array) == 0:  # The means of samples would differ in rounding.
        return Estimate(*[float(array[0])] * 3)
    result = bootstrap((array,), np.mean, n_resamples=num_samples, method="percentile", rng=seed)
    interval = result.confidence_interval
    return Estimate(float(array.mean()), float(interval.low), float(interval.high))


def student_half_width(values: ArrayLike) -> float:
    """Half of the 95% interval of a mean of normal values, by Student's t; NaN of one value."""
    array = _matrix("values", values)[:, 0]
    if len(array) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def _bootstrap(
    statistic: Callable[..., Matrix], samples: list[Matrix], num_samples: int, seed: int
) -> Estimate:
    value = float(statistic(*samples))
    if any(len(sample) == 1 for sample in samples):  # One run has no interval.
        return Estimate(value, float("nan"), float("nan"))
    result = bootstrap(
        samples, statistic, n_resamples=num_samples, method="percentile", vectorized=True, rng=seed
    )
    interval = result.confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _matrix(argument: str, values: ArrayLike) -> Matrix:
    """Runs in rows, tasks in columns."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise InvalidArgumentError(
            argument, values, "must be finite numbers of shape (num_runs,) or (num_runs, num_tasks)"
        )
    return matrix
