"""How methods compare with a baseline: differences under equal seeds, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from textgym.benchmark.statistics import (
    Difference,
    holm,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
)
from textgym.benchmark.tables import markdown_table

__all__ = ["NOTE", "compare", "corrected_by_holm", "differences_from", "format_p", "pairs_of_seeds"]


def compare(scores: Mapping[str, pd.Series], baseline: str) -> list[str]:
    """The lines of a table with a row per method.

    A difference that rests on fewer seeds than the method has says on how many.

    Args:
        scores: By method, a score per seed, with the seeds as the index.
        baseline: The method that the others are compared with, under the seeds that both have.
    """
    differences = differences_from(baseline, scores)
    corrected = corrected_by_holm(differences)
    rows = []
    for method, values in scores.items():
        cells = [method, str(len(values)), str(stratified_bootstrap(values))]
        if method in differences:
            chance = probability_of_improvement(values, scores[baseline])
            pairs = len(pairs_of_seeds(values, scores[baseline]))
            some = "" if pairs == len(values) else f", {pairs} seed{'s' if pairs > 1 else ''}"
            shown = f"{differences[method]}{some}"
            cells += [shown, format_p(corrected[method]), f"{chance:.2f}"]
        else:
            cells += ["–", "–", "–"]
        rows.append(cells)
    header = ["method", "seeds", "score", f"minus {baseline}, same seeds", "p"]
    return markdown_table([*header, f"P(above {baseline})"], rows)


def differences_from(baseline: str, scores: Mapping[str, pd.Series]) -> dict[str, Difference]:
    """How each other method differs from a baseline, under the seeds that both have.

    Args:
        baseline: A key of ``scores``.
        scores: By method, a score per seed, with the seeds as the index.

    Returns:
        By method, without those that share no seed with the baseline.
    """
    others = {method: one for method, one in scores.items() if method != baseline}
    pairs = {method: pairs_of_seeds(one, scores[baseline]) for method, one in others.items()}
    return {method: paired_difference(*both.T) for method, both in pairs.items() if len(both)}


def corrected_by_holm(differences: Mapping[str, Difference]) -> dict[str, float]:
    """The p-values of differences, each corrected for all of them."""
    corrected = holm([one.p for one in differences.values()])
    return dict(zip(differences, corrected.tolist(), strict=True))


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
