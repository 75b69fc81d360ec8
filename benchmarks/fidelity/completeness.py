"""How far integrated gradients are from summing to the score."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.credit import IntegratedGradientsCredit
from textgym.models import PrefixScores

from .task import Methods, Task

__all__ = ["measure"]


def measure(output: Path, methods: Methods) -> None:
    """Write completeness.csv: |Σ attributions − (score − baseline's score)| on IMDb completions.

    Args:
        output: The folder.
        methods: Unused: this is about integrated gradients alone.
    """
    task = Task("embedded")
    completions = task.sample(64, prompts="imdb", min_new_tokens=16, max_new_tokens=16)
    completions = completions.select(slice(0, 16))
    scored = task.reward_model.read(completions, [PrefixScores()])
    results = []
    for baseline in ("mean", "zero"):
        for num_steps in (8, 16, 32, 64):
            method = IntegratedGradientsCredit(1.0, num_steps=num_steps, baseline=baseline)
            total = (method.attributions(scored) * scored.completion_mask).sum(1)
            expected = scored.score - method.baseline_score(scored)
            results.append(
                {
                    "baseline": baseline,
                    "num_steps": num_steps,
                    "mean_error": (total - expected).abs().mean().item(),
                    "largest_error": (total - expected).abs().max().item(),
                    "mean_sum": expected.abs().mean().item(),
                }
            )
    pd.DataFrame(results).round(6).to_csv(output / "completeness.csv", index=False)
