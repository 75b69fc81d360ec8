"""Score at equal KL, from runs with several weights of the KL penalty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .curves import new_figure, save
from .methods import METHODS
from .statistics import stratified_bootstrap
from .tables import markdown_table

__all__ = [
    "draw_frontier",
    "ends_of_families",
    "estimate_at_kl",
    "frontier_tables",
    "scores_at_kl",
]

_MEASURES = {"fresh_score": "score", "fresh_gold": "gold"}


def ends_of_families(runs: pd.DataFrame) -> pd.DataFrame:
    """The last rows of the runs whose method has a family, with a column ``family``."""
    families = runs["method"].map(lambda name: METHODS[name].family if name in METHODS else None)
    ends = runs.assign(family=families)
    is_end = (ends["iteration"] == ends["iterations"]) & ends["family"].notna()
    return ends[is_end & ends["fresh_kl"].notna()] if "fresh_kl" in ends else ends[:0]


def scores_at_kl(ends: pd.DataFrame, kl: float, column: str = "fresh_score") -> pd.Series:
    """Each seed's score at a KL, interpolated between its runs on either side.

    Args:
        ends: Last rows of the runs of one family, with ``seed``, ``fresh_kl`` and the column.
        kl: In nats.
        column: What is interpolated.

    Returns:
        By seed, those seeds that have a run on either side.
    """
    scores = {}
    for seed, rows in ends.groupby("seed"):
        rows = rows.sort_values("fresh_kl")
        if rows["fresh_kl"].min() <= kl <= rows["fresh_kl"].max():
            scores[seed] = float(np.interp(kl, rows["fresh_kl"], rows[column]))
    return pd.Series(scores, dtype=float)


def estimate_at_kl(ends: pd.DataFrame, kl: float, column: str = "fresh_score") -> str:
    """What a table shows of :func:`scores_at_kl`.

    Their interquartile mean, its interval by the bootstrap, which is too narrow with few seeds, and
    the number of seeds if it is not all.
    """
    scores = scores_at_kl(ends, kl, column)
    if scores.empty:
        return "–"
    number = ends["seed"].nunique()
    some = "" if len(scores) == number else f", {len(scores)} of {number} seeds"
    return f"{stratified_bootstrap(scores)}{some}"


def frontier_tables(
    ends: pd.DataFrame, levels: Sequence[float] = (15.0, 20.0, 25.0, 30.0, 35.0)
) -> list[str]:
    """A table for each measure: families in lines, values of KL in columns."""
    text: list[str] = []
    number = _number_of_completions(ends)
    for column, name in _MEASURES.items():
        if column not in ends or ends[column].isna().all():
            continue
        lines = [
            [str(family), *(estimate_at_kl(rows, kl, column) for kl in levels)]
            for family, rows in ends.groupby("family", sort=False)
        ]
        header = [f"{name} of {number}fresh completions at", *(f"KL {kl:.0f}" for kl in levels)]
        text += [*markdown_table(header, lines), ""]
    return text


def draw_frontier(ends: pd.DataFrame, path: Path) -> None:
    """Score and gold score against KL: a line per family, a point per weight of the penalty."""
    measures = [one for one in _MEASURES if one in ends and ends[one].notna().any()]
    figure = new_figure(6.5 * len(measures), 4.8)
    for axes, column in zip(
        np.atleast_1d(figure.subplots(1, len(measures))), measures, strict=True
    ):
        for family, rows in ends.groupby("family", sort=False):
            means = rows.groupby("method", sort=False)[["fresh_kl", column]].mean()
            means = means.sort_values("fresh_kl")
            color = METHODS[str(family)].color if family in METHODS else None
            (line,) = axes.plot(means["fresh_kl"], means[column], "o-", color=color, label=family)
            axes.plot(
                rows["fresh_kl"], rows[column], ".", color=line.get_color(), alpha=0.4, zorder=1.5
            )
        axes.set_xlabel("KL to the reference policy (nats per completion)")
        axes.set_ylabel(f"{_MEASURES[column]} of fresh completions, at the end")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def _number_of_completions(ends: pd.DataFrame) -> str:
    """How many fresh completions each run was measured on, as the texts tell, or nothing."""
    texts = ends["fresh_texts"].dropna().tolist() if "fresh_texts" in ends else []
    return f"{len(json.loads(texts[0]))} " if texts else ""
