"""Deletion and insertion curves, comprehensiveness and sufficiency.

The tokens with the most credit in the score's direction are deleted, or kept alone; DeYoung et al.
2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models", arXiv 1911.03429.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from textgym.credit import CreditAssigner
from textgym.models import Completions

from .task import Methods, Task, credit_of

__all__ = ["measure"]

FRACTIONS = np.linspace(0.0, 1.0, 11)
ERASER_FRACTIONS = (0.1, 0.2, 0.3, 0.5)


def measure(output: Path, methods: Methods, num_completions: int = 256) -> None:
    """Write erasure.csv (the curves) and erasure_metrics.parquet (a row per completion)."""
    curves: list[tuple] = []
    metrics: list[tuple] = []
    for task, completions in _tasks(num_completions):
        for method, definition in methods.items():
            assigner = task.assigner(*definition)
            deleted, kept = _curves(task, assigner, completions)
            for fraction in FRACTIONS:
                key = round(float(fraction), 2)
                means = deleted[key].mean().item(), kept[key].mean().item()
                curves.append((task.name, method, key, *means))
            whole = deleted[0.0]
            comprehensiveness = whole - _mean_of(deleted)
            sufficiency = whole - _mean_of(kept)
            pairs = zip(comprehensiveness.tolist(), sufficiency.tolist(), strict=True)
            metrics += [(task.name, method, row, *pair) for row, pair in enumerate(pairs)]
    columns = ["task", "method", "fraction", "deletion", "insertion"]
    pd.DataFrame(curves, columns=columns).round(5).to_csv(output / "erasure.csv", index=False)
    columns = ["task", "method", "completion", "comprehensiveness", "sufficiency"]
    table = pd.DataFrame(metrics, columns=columns).round(4)
    table.to_parquet(output / "erasure_metrics.parquet", index=False)


def _tasks(num_completions: int) -> Iterator[tuple[Task, Completions]]:
    task = Task("planted")
    yield task, task.sample(num_completions)
    task = Task("embedded")
    yield (
        task,
        task.sample(num_completions // 2, prompts="imdb", min_new_tokens=32, max_new_tokens=32),
    )


def _mean_of(curve: dict[float, torch.Tensor]) -> torch.Tensor:
    return torch.stack([curve[fraction] for fraction in ERASER_FRACTIONS]).sum(0) / 4


def _curves(
    task: Task, assigner: CreditAssigner, completions: Completions
) -> tuple[dict[float, torch.Tensor], dict[float, torch.Tensor]]:
    """Score towards the whole text's sign, per completion, by the fraction deleted or kept."""
    credit, score = credit_of(task, assigner, completions)
    direction = torch.where(score >= 0, 1.0, -1.0)
    mask = completions.completion_mask
    against = (-credit * direction[:, None]).masked_fill(~mask, torch.inf)
    # Ties are broken at random: under sparse reward all tokens but the last one tie.
    noise = torch.rand(credit.shape, generator=torch.Generator().manual_seed(0))
    rank = torch.from_numpy(np.lexsort((noise.numpy(), against.numpy()), axis=1)).argsort(1)
    length = mask.sum(1, keepdim=True)
    deleted: dict[float, torch.Tensor] = {}
    kept: dict[float, torch.Tensor] = {}
    for fraction in sorted({*FRACTIONS.round(2).tolist(), *ERASER_FRACTIONS}):
        first = mask & (rank < (fraction * length).round())
        for result, stays in ((deleted, mask & ~first), (kept, first)):
            text = Completions(completions.input_ids, completions.prompt_mask | stays, stays)
            result[fraction] = direction * task.reward_model.read(text).score
    return deleted, kept
