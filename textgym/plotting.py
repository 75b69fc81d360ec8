"""Learning curves: their means, when they reach a score, and how they are drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MOST_LINES",
    "draw_curves",
    "draw_frontier",
    "first_reached",
    "mean_interval",
    "new_figure",
    "plot_learning_curves",
    "to_svg",
    "trailing_mean",
]

# Okabe & Ito's colours, and different dashes: the lines can be told apart with any kind of colour
# vision, and in black and white.
_STYLES = (
    ("#0072B2", "--"),
    ("#E69F00", "-."),
    ("#009E73", "-"),
    ("#CC79A7", ":"),
    ("#D55E00", (0, (6, 1, 1, 1, 1, 1))),
    ("#56B4E9", (0, (1, 2))),
    ("#000000", (0, (8, 2))),
    ("#8C6D31", (0, (3, 1))),
)
MOST_LINES = len(_STYLES)
"""How many lines can be told apart."""

# Student's t at 97.5%, by degrees of freedom from 1: Abramowitz & Stegun 1964, table 26.10.
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_NORMAL = 1.959964


def new_figure(width: float, height: float) -> Figure:
    """A figure that needs no screen, its size in inches."""
    # Not pyplot: it would look for a display, and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_svg(figure: Figure) -> str:
    """A figure as SVG, whose letters are shapes; equal figures give equal text."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "textgym"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def mean_interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over runs, with the half-widths of their 95% intervals, by Student's t.

    Args:
        values: Shape (num_runs, num_points).

    Returns:
        Both float64, shape (num_points,). The half-width of a single run is NaN: nothing is known
        about the others.
    """
    runs = np.asarray(values, dtype=np.float64)
    freedom = len(runs) - 1
    if freedom == 0:
        return runs[0], np.full(runs.shape[1], np.nan)
    error = runs.std(axis=0, ddof=1) / math.sqrt(len(runs))
    return runs.mean(axis=0), _student(freedom) * error


def _student(freedom: int) -> float:
    """The 97.5% quantile of Student's t.

    Beyond the table by the expansion in 1 / freedom, Abramowitz & Stegun 1964, 26.7.5.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def draw_curves(
    axes: Axes, groups: Mapping[str, Sequence[Sequence[float]]], label: str, window: int = 5
) -> None:
    """Draw a quantity against iterations: a line per group of runs, the mean over its runs.

    Of a single run, single iterations are drawn faintly. Of several, every run is, and a band shows
    the 95% interval of the mean, over the iterations that all of them have reached. A run without
    values is passed over.

    Args:
        axes: What is drawn on.
        groups: By the name of the group, the values of each run; groups without values are passed
            over. At most :data:`MOST_LINES`.
        label: Of the quantity.
        window: Iterations in the trailing means.
    """
    shown: list[NDArray[np.float64]] = []
    for (name, all_runs), (color, dashes) in zip(groups.items(), _STYLES, strict=False):
        runs = [run for run in all_runs if len(run)]
        if not runs:
            continue
        length = min(map(len, runs))
        if len(runs) == 1:
            axes.plot(range(1, length + 1), runs[0], color=color, alpha=0.25, linewidth=1)
        smooth = np.stack([trailing_mean(run[:length], window) for run in runs])
        mean, half = mean_interval(smooth)
        iterations = np.arange(length - len(mean) + 1, length + 1)
        axes.plot(iterations, mean, color=color, linestyle=dashes, linewidth=2, label=name)
        if len(runs) > 1:
            axes.plot(iterations, smooth.T, color=color, alpha=0.35, linewidth=0.8)
            below, above = mean - half, mean + half
            axes.fill_between(iterations, below, above, color=color, alpha=0.12, linewidth=0)
        shown += [smooth.min(axis=0), smooth.max(axis=0)]
    finite = np.concatenate(shown)[np.isfinite(np.concatenate(shown))] if shown else np.array([])
    if finite.size:  # Intervals of two runs are so wide that nothing else would be seen.
        low, high = finite.min(), finite.max()
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    _finish_curves(axes, label)


def _finish_curves(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def draw_frontier(
    axes: Axes, groups: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], window: int
) -> None:
    """Draw score against KL: a thin line per run, a dot where it ends.

    Args:
        axes: What is drawn on.
        groups: By the name of the group, KL and score of each run, by iteration.
        window: Iterations in the trailing means.
    """
    for (name, runs), (color, dashes) in zip(groups.items(), _STYLES, strict=False):
        for number, (kl, score) in enumerate(runs):
            if not len(kl):
                continue
            x, y = trailing_mean(kl, window), trailing_mean(score, window)
            label = name if number == 0 else None
            axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.4, label=label)
            axes.plot(x[-1:], y[-1:], "o", color=color, markersize=6)
    axes.set_xlabel("KL to the reference policy (nats per episode)")
    axes.set_ylabel("mean score")
    axes.grid(alpha=0.3)


def trailing_mean(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Mean of each value and the ``window - 1`` values before it.

    Args:
        values: At least one value.
        window: How many values each mean covers.

    Returns:
        float64, shape (number of values - window + 1,): entry i is the mean that ends with value
        i + window - 1. If there are fewer values than the window, one mean over all of them.

    Raises:
        InvalidArgumentError: If there are no values, or the window is smaller than 1.

    >>> trailing_mean([1.0, 2.0, 6.0], 2).tolist()
    [1.5, 4.0]
    """
    if len(values) == 0:
        raise InvalidArgumentError("values", values, "must hold at least one value")
    if window < 1:
        raise InvalidArgumentError("window", window, "must be at least 1")
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(values, dtype=np.float64), min(window, len(values))
    )
    return windows.mean(axis=1)


def first_reached(scores: Sequence[float], goal: float, window: int) -> int | None:
    """The first point, from 1, at which the mean over the last ``window`` scores reaches a goal.

    Args:
        scores: One per iteration.
        goal: The mean to be reached.
        window: How many scores a mean is taken over; all of them if there are fewer.

    Returns:
        None if it is not reached.
    """
    (reached,) = np.nonzero(trailing_mean(scores, window) >= goal)
    return int(reached[0]) + min(window, len(scores)) if len(reached) else None


def plot_learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path, title: str, window: int = 5
) -> None:
    """Plot the score and the KL of training runs against their iterations.

    Args:
        runs: Rows of scalars by the name of the run, as in :attr:`textgym.agents.PPO.history`; at
            most :data:`MOST_LINES` runs.
        path: Where to write the picture; the suffix decides the format.
        title: Printed above the panels.
        window: Iterations in the trailing means that the strong lines show. The faint lines show
            single iterations.

    Raises:
        InvalidArgumentError: If there are more runs than lines that can be told apart.
    """
    if len(runs) > len(_STYLES):
        raise InvalidArgumentError(
            "runs", list(runs), f"only {len(_STYLES)} runs can be told apart; pass fewer"
        )
    panels = {
        "rollout/score_mean": "mean score of the episodes",
        "rollout/kl": "KL to the reference policy (nats per episode)",
    }
    figure = new_figure(11, 4.6)
    for axes, (metric, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for (name, rows), (color, dashes) in zip(runs.items(), _STYLES, strict=False):
            iterations = [row["time/iteration"] for row in rows]
            values = [row[metric] for row in rows]
            means = trailing_mean(values, window)
            axes.plot(iterations, values, color=color, alpha=0.25, linewidth=1)
            axes.plot(
                iterations[-len(means) :],
                means,
                color=color,
                linestyle=dashes,
                linewidth=2.2,
                label=name,
            )
        _finish_curves(axes, label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(f"{title}\nfaint: each iteration; strong: mean of the last {window}")
    figure.savefig(path, dpi=150)
