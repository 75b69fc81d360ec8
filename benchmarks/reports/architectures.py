"""Which architectures are read right, which are refused, and why."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "KINDS", "any_wrong", "describe", "write"]

KEYS = ("kind", "architecture")
KINDS = ("language model", "classifier")
OUTCOMES = ("right", "refused", "not compared", "failed", "wrong")
WAYS = {
    "rollouts": "policy, in rollouts",
    "updates": "policy, in updates",
    "scores": "reward model, scores",
    "prefix scores": "prefix scores",
    "attention": "attention row",
    "gradient": "gradient times input",
}


def write(output: Path) -> str:
    """Write ``table.md`` from ``architectures.csv``; returns it."""
    rows = read_rows(output / "architectures.csv", KEYS)
    built = rows[rows["outcome"] != "not built"]
    lines = []
    for way, name in WAYS.items():
        of_way = built[built["way"] == way]
        counts = of_way["outcome"].value_counts()
        right = of_way[of_way["outcome"] == "right"]
        numbers = [str(counts.get(outcome, 0)) for outcome in OUTCOMES]
        lines.append([name, str(len(of_way)), *numbers, f"{right['difference'].max():.0e}"])
    header = ["what is read", "architectures", *OUTCOMES, "largest difference"]
    return write_tables(output, markdown_table(header, lines), _exceptions(rows))


def any_wrong(output: Path) -> bool:
    """Whether anything is read wrong."""
    return bool((read_rows(output / "architectures.csv", KEYS)["outcome"] == "wrong").any())


def describe(run: pd.DataFrame) -> str:
    """An architecture in a line."""
    return ", ".join(f"{row.way} {row.outcome}" for row in run.itertuples())


def _exceptions(rows: pd.DataFrame) -> list[str]:
    """Everything that is not read right, token by token, with the reason."""
    exceptions = rows[(rows["outcome"] != "right") | (rows["reason"] == "whole texts anew")]
    lines = []
    for (kind, architecture), of_one in exceptions.groupby(list(KEYS), sort=True):
        for (outcome, reason), group in of_one.groupby(["outcome", "reason"], sort=False):
            ways = ", ".join(group["way"])
            lines.append([str(kind), str(architecture), ways, str(outcome), str(reason)])
    return markdown_table(["kind", "architecture", "way", "outcome", "reason"], lines)
