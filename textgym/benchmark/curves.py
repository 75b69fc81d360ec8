"""Learning curves: how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from textgym.plotting import new_figure

__all__ = ["draw_seeds", "label_panels", "new_figure", "save"]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file, without the frame lines at the top and at the right of each panel."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def label_panels(panels: Sequence[Axes], kl_budget: float) -> None:
    """Finish three panels: score and KL against iterations, and score against KL.

    The legend goes below all panels of the figure, where it hides no curve.

    Args:
        panels: In this order, drawn on.
        kl_budget: A dotted line in the second one.
    """
    panels[1].axhline(kl_budget, color="black", linewidth=0.8, linestyle=":")
    kl = "KL to the reference policy (nats per completion)"
    labels = [("iteration", "mean score"), ("iteration", kl), (kl, "mean score")]
    for axes, (x, y) in zip(panels, labels, strict=True):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(alpha=0.3)
    lines, methods = panels[0].get_legend_handles_labels()
    panels[0].figure.legend(
        lines, methods, loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )


def draw_seeds(
    axes: Axes, rows: pd.DataFrame, column: str, smoothing: int, color: str, label: str
) -> None:
    """Draw every seed as a thin line, and their mean as a strong one.

    Args:
        axes: What is drawn on.
        rows: With the columns ``iteration``, ``seed`` and the one that is drawn.
        column: What is drawn.
        smoothing: Iterations of the trailing mean.
        color: Of all lines.
        label: Of the mean, in the legend.
    """
    wide = rows.pivot(index="iteration", columns="seed", values=column)
    smooth = wide.rolling(smoothing).mean()
    axes.plot(smooth.index, smooth, color=color, alpha=0.3, linewidth=0.9)
    axes.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=2.2, label=label)
