"""The table of what takes a sampler away from the policy."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "describe", "write"]

KEYS = ("cause", "seed")


def write(output: Path) -> str:
    """Write ``table.md`` from ``runs.csv``, the nearest samplers first; returns it."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = []
    nearest_first = runs.groupby("cause")["sampler_kl"].mean().sort_values().index
    for cause in nearest_first:
        of_cause = runs[runs["cause"] == cause]
        mean = of_cause.mean(numeric_only=True)
        lines.append(
            [
                str(cause),
                f"{mean['sampler_kl']:.5f}",
                f"{mean['sampler_gap']:.4f}",
                f"{of_cause['warned'].sum():.0f} of {len(of_cause)}",
                f"{mean['importance_weight of tokens']:.3f}",
                f"{mean['importance_capped of tokens']:.1%}",
                f"{mean['importance_weight of completions']:.3f}",
                f"{mean['importance_capped of completions']:.1%}",
            ]
        )
    header = ["cause", "KL", "gap", "warned", "weight of tokens", "capped"]
    header += ["weight of completions", "capped"]
    return write_tables(output, markdown_table(header, lines))


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    (row,) = run.to_dict("records")
    return f"KL {row['sampler_kl']:.5f}, gap {row['sampler_gap']:.4f}"
