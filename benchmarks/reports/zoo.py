"""Table of zoo.py, made from runs.csv alone."""

from __future__ import annotations

from pathlib import Path

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

from .ends import HEADER, describe, ends_row

__all__ = ["ALGORITHMS", "KEYS", "describe", "write"]

KEYS = ("algorithm", "seed")
ALGORITHMS = ("ppo", "a2c", "dqn")


def write(output: Path) -> str:
    """Write ``table.md`` from ``runs.csv``; returns it."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = [
        [name.upper(), *ends_row(of_algorithm)]
        for name in ALGORITHMS
        if len(of_algorithm := runs[runs["algorithm"] == name])
    ]
    text = "\n".join(markdown_table(["algorithm", *HEADER], lines)) + "\n"
    (output / "table.md").write_text(text, encoding="utf-8")
    return text
