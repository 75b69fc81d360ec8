"""How methods compare with a baseline: differences under equal seeds, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from textgym.benchmark.statistics import (
    holm,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)
from textgym.benchmark.tables import markdown_table

__all__ = ["NOTE", "compare", "format_p", "pairs_of_seeds"]


def compare(scores: Mapping[str, pd.Series], baseline: str) -> list[str]:
    """The lines of a table with a row per method.

    Args:
        scores: By method, a score per seed, with the seeds as the index.
        baseline: The method that the others are compared with, under the seeds that both have.
    """
    base = scores[baseline]
    pairs = {m: pairs_of_seeds(one, base) for m, one in scores.items() if m != baseline}
    differences = {m: paired_difference(*both.T) for m, both in pairs.items() if len(both)}
    p_values = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    rows = []
    for method, values in scores.items():
        cells = [method, str(len(values)), str(stratified_bootstrap(values))]
        if method in differences:
            chance = probability_of_improvement(values, base)
            cells += [str(differences[method]), format_p(p_values[method]), f"{chance:.2f}"]
        else:
            cells += ["–", "–", "–"]
        rows.append(cells)
    header = ["method", "seeds", "score", f"minus {baseline}, same seeds", "p"]
    return markdown_table([*header, f"P(above {baseline})"], rows)


def format_p(p: float) -> str:
    """A p-value as it stands in tables."""
    if np.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def pairs_of_seeds(scores: pd.Series, others: pd.Series) -> np.ndarray:
    """The scores of two methods under the seeds that both have, shape (num_seeds, 2).

    Args:
        scores: A score per seed, with the seeds as the index.
        others: The same of the other method.
    """
    return pd.concat([scores, others], axis=1, join="inner").to_numpy()


NOTE = (
    "score: interquartile mean over seeds, of the mean over the last {what} of each run, with a "
    "95% interval by the bootstrap over seeds, which is too narrow with few of them; minus sparse: "
    "mean difference under equal seeds, with the 95% interval of a paired t-test, and its p after "
    "Holm's correction for all rows; P: share of pairs of runs in which the method scores higher."
)
"""What the table shows; ``what`` is what the score is averaged over."""
