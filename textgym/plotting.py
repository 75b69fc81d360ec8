"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textgym.errors import InvalidArgumentError

__all__ = ["plot_learning_curves", "trailing_mean"]

# Okabe & Ito's colours, and different dashes: the lines can be told apart with any kind of colour
# vision, and in black and white.
_STYLES = (("#0072B2", "--"), ("#E69F00", "-."), ("#009E73", "-"), ("#CC79A7", ":"))


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


def plot_learning_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path, title: str, window: int = 5
) -> None:
    """Plot the score and the KL of training runs against their iterations.

    Args:
        runs: Rows of scalars by the name of the run, as in :attr:`textgym.agents.PPO.history`; at
            most four runs.
        path: Where to write the picture; the suffix decides the format.
        title: Printed above the panels.
        window: Iterations in the trailing means that the strong lines show. The faint lines show
            single iterations.

    Raises:
        InvalidArgumentError: If there are more than four runs.
    """
    # Not pyplot: it would look for a display, and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(runs) > len(_STYLES):
        raise InvalidArgumentError(
            "runs", list(runs), f"only {len(_STYLES)} runs can be told apart; pass fewer"
        )
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
