"""Rank correlation with the true contributions, on the planted task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from textgym import planted

from .task import Methods, Task, credit_of

__all__ = ["measure", "rank_correlation"]


def measure(output: Path, methods: Methods, num_completions: int = 1024) -> None:
    """Write correlation.parquet: Spearman's ρ of each completion, of credits and of magnitudes."""
    task = Task("planted")
    completions = task.sample(num_completions)
    rows = zip(completions.input_ids, completions.attention_mask, strict=True)
    lengths = completions.completion_mask.sum(1).tolist()
    truth = [
        planted.contributions(ids[mask].tolist())[-length:]
        for (ids, mask), length in zip(rows, lengths, strict=True)
    ]
    # Where no token contributed, or all contributed alike, there is no order to find.
    varied = [row for row, values in enumerate(truth) if np.ptp(values) > 0]
    completions = completions.select(torch.tensor(varied))
    results = []
    for method, definition in methods.items():
        credit, _ = credit_of(task, task.assigner(*definition), completions)
        for given, mask, index in zip(credit, completions.completion_mask, varied, strict=True):
            earned, true = given[mask].numpy(), truth[index]
            results.append(
                {
                    "method": method,
                    "completion": index,
                    "signed": rank_correlation(earned, true),
                    "magnitude": rank_correlation(np.abs(earned), np.abs(true)),
                }
            )
    pd.DataFrame(results).round(4).to_parquet(output / "correlation.parquet", index=False)


def rank_correlation(credit: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's ρ; 0 where all tokens have the same credit, which orders nothing."""
    if min(np.ptp(credit), np.ptp(truth)) < 1e-6:
        return 0.0
    return float(spearmanr(credit, truth).statistic)
