"""How methods compare with a baseline, with interquartile means and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from textgym.benchmark.statistics import (
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)
from textgym.benchmark.tables import markdown_table

__all__ = ["NOTE", "compare", "pairs_of_seeds"]


def compare(scores: Mapping[str, pd.Series], baseline: str) -> list[str]:
    """The lines of a table with a row per method.

    Args:
        scores: By method, a score per seed, with the seeds as the index.
        baseline: The method that the others are compared with, under the seeds that both have.
    """
    rows = []
    for method, values in scores.items():
        cells = [method, str(len(values)), str(stratified_bootstrap(values))]
        pairs = pairs_of_seeds(values, scores[baseline])
        if method == baseline or not len(pairs):
            cells += ["–", "–"]
        else:
            chance = probability_of_improvement(values, scores[baseline])
            cells += [
                str(paired_difference(pairs[:, 0], pairs[:, 1])),
                f"{chance.value:.2f} ({chance.low:.2f} to {chance.high:.2f})",
            ]
        rows.append(cells)
    header = ["method", "seeds", "score", f"minus {baseline}, same seeds", f"P(above {baseline})"]
    return markdown_table(header, rows)


def pairs_of_seeds(scores: pd.Series, others: pd.Series) -> np.ndarray:
    """The scores of two methods under the seeds that both have, shape (num_seeds, 2).

    Args:
        scores: A score per seed, with the seeds as the index.
        others: The same of the other method.
    """
    return pd.concat([scores, others], axis=1, join="inner").to_numpy()


NOTE = (
    "score: interquartile mean over seeds, of the mean over the last {what} of each run; minus "
    "sparse: interquartile mean of the differences under equal seeds; P: probability that a run "
    "scores higher than one with sparse reward. In brackets: 95% intervals by the stratified "
    "bootstrap over seeds, which come out too narrow with few seeds; table.md shows the spread."
)
"""What the table shows; ``what`` is what the score is averaged over."""
