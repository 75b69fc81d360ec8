"""Interquartile means, bootstrap intervals and comparisons of runs.

Interquartile means with their bootstrap and the probability of improvement are those of Agarwal et
al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264,
and of its package rliable, which does not import beside current versions of pandas and arch. The
bootstrap needs many runs: of three to five it is too narrow. So differences, on which claims rest,
have the interval of the paired t-test, which holds what it says from three runs on, as advised by
Colas et al. 2019, "A Hitchhiker's Guide to Statistical Comparisons of Reinforcement Learning
Algorithms", arXiv 1904.06979.

Scores are (num_runs, num_tasks), or (num_runs,) for a single task. All intervals hold 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, trim_mean, ttest_1samp
from scipy.stats import t as student

from textgym.errors import InvalidArgumentError

__all__ = [
    "Difference",
    "Estimate",
    "bootstrap_mean",
    "holm",
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
        return format(self, "+.2f")

    def __format__(self, form: str) -> str:
        """Value and bounds, each in this form; the value alone if it has no bounds."""
        form = form or "+.2f"
        if math.isnan(self.low):
            return format(self.value, form)
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


class Difference(NamedTuple):
    """A mean difference with the bounds of its 95% interval and the p-value of "none"."""

    value: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return str(Estimate(*self[:3]))


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


def paired_difference(scores: ArrayLike, others: ArrayLike) -> Difference:
    """The mean of ``scores - others``, run by run, with the interval and p of a paired t-test.

    Rows of equal number belong together, such as runs of equal seed. A single pair has no interval.

    Args:
        scores: (num_runs, num_tasks).
        others: Same shape.
    """
    first, second = _matrix("scores", scores), _matrix("others", others)
    if first.shape != second.shape:
        raise InvalidArgumentError(
            "others", second.shape, f"pairs need the shape of scores, {first.shape}"
        )
    differences = (first - second).mean(axis=1)
    value, half = float(differences.mean()), student_half_width(differences)
    if math.isnan(half):
        p = math.nan
    elif half == 0:  # All pairs differ by the same, as if measured without noise.
        p = float(value == 0)
    else:
        p = float(ttest_1samp(differences, 0.0).pvalue)
    return Difference(value, value - half, value + half, p)


def holm(p_values: ArrayLike) -> Matrix:
    """Holm's p-values: those of a family of tests, so that each holds beside all the others.

    The smallest is multiplied by their number, the next by one less, and so on, and none may be
    smaller than one before it (Holm 1979, "A Simple Sequentially Rejective Multiple Test
    Procedure"). NaN stays NaN, and does not count.

    Args:
        p_values: (num_tests,).

    Raises:
        InvalidArgumentError: If they have another shape, or one is below 0 or above 1.
    """
    p = np.array(p_values, dtype=np.float64)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise InvalidArgumentError(
            "p_values", p_values, "must be numbers from 0 to 1, or NaN, of shape (num_tests,)"
        )
    order = np.argsort(p)[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return p


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float:
    """How probably a run of one method scores higher than a run of the other, mean over tasks.

    All pairs of runs are compared, and a tie counts half: the Mann-Whitney U statistic over the
    number of pairs.

    Args:
        scores: (num_runs, num_tasks).
        others: (num_other_runs, num_tasks).
    """
    first, second = _matrix("scores", scores), _matrix("others", others)
    if second.shape[1] != first.shape[1]:
        raise InvalidArgumentError(
            "others", second.shape, f"needs as many tasks (columns) as scores, {first.shape[1]}"
        )
    difference = first[:, None] - second[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def bootstrap_mean(values: ArrayLike, num_samples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of many values and its percentile interval; a single value has none."""
    array = _vector("values", values)
    if len(array) == 1:
        return Estimate(float(array[0]), math.nan, math.nan)
    if np.ptp(array) == 0:  # The means of samples would differ in rounding.
        return Estimate(*[float(array[0])] * 3)
    result = bootstrap((array,), np.mean, n_resamples=num_samples, method="percentile", rng=seed)
    interval = result.confidence_interval
    return Estimate(float(array.mean()), float(interval.low), float(interval.high))


def student_half_width(values: ArrayLike) -> float:
    """Half of the 95% interval of a mean of normal values, by Student's t; NaN of one value."""
    array = _vector("values", values)
    if len(array) < 2:
        return math.nan
    return float(student.ppf(0.975, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)


def _bootstrap(
    statistic: Callable[..., Matrix], samples: list[Matrix], num_samples: int, seed: int
) -> Estimate:
    value = float(statistic(*samples))
    if any(len(sample) == 1 for sample in samples):  # One run has no interval.
        return Estimate(value, math.nan, math.nan)
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


def _vector(argument: str, values: ArrayLike) -> Matrix:
    """Values in a row."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise InvalidArgumentError(
            argument, values, "must be finite numbers of shape (num_values,)"
        )
    return vector
