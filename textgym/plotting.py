"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from textgym.errors import InvalidArgumentError

__all__ = ["plot_learning_curves", "trailing_mean"]

# Okabe & Ito's colours and different dashes: the lines differ for every kind of colour vision and
# in black and white.
_STYLES = (("#0072B2", "--"), ("#E69F00", "-."), ("#009E73", "-"), ("#CC79A7", ":"))


def trailing_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Mean of each value and the ``window - 1`` values before it.

    Args:
        values: Any number of values, at least one.
        window: How many values a mean is taken over.

    Returns:
        float64, shape (number of values - window + 1,): entry i is the mean that ends with value
        i + window - 1. With fewer values than the window, the one mean over all of them.

    Raises:
        InvalidArgumentError: If there is no value, or the window is smaller than 1.

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


def plot_learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path, title: str, window: int = 5
) -> None:
    """Draw the score and the KL of training runs against their iterations.

    Args:
        runs: Rows of scalars by the name of the run, as in :attr:`textgym.agents.PPO.history`.
        path: The picture; its suffix decides the format.
        title: Stands above the panels.
        window: The strong lines are trailing means over so many iterations, the faint ones the
            iterations themselves.
    """
    # Without pyplot: it would look for a display, and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "rollout/score_mean": "mean score of the episodes",
        "rollout/kl": "KL to the reference policy (nats per episode)",
    }
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
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
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(f"{title}\nfaint: each iteration; strong: mean of the last {window}")
    figure.savefig(path, dpi=150)
