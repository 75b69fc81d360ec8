"""What was killed, and whether it went on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

__all__ = ["KEYS", "PHASES", "any_differs", "describe", "write"]

KEYS = ("agent", "seed")
PHASES = ("start-up", "rollout", "update", "checkpoint")
NAMES = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "sb3": "Stable-Baselines3's PPO"}


def write(output: Path) -> str:
    """Write ``table.md`` from ``kills.csv``; returns it."""
    kills = read_rows(output / "kills.csv", KEYS)
    lines = []
    for agent, rows in kills.groupby("agent", sort=False):
        runs = rows.groupby("seed")["identical"].first()
        counts = rows["phase"].value_counts()
        lines.append(
            [
                NAMES[str(agent)],
                str(len(rows)),
                *(str(counts.get(phase, 0)) for phase in PHASES),
                f"{int(runs.sum())} of {len(runs)}",
            ]
        )
    header = ["agent", "kills", *(f"in {phase}" for phase in PHASES), "runs equal bit for bit"]
    return write_tables(output, markdown_table(header, lines))


def any_differs(output: Path) -> bool:
    """Whether a run that was killed differs from the unbroken one."""
    return not read_rows(output / "kills.csv", KEYS)["identical"].all()


def describe(run: pd.DataFrame) -> str:
    """A finished run in a line."""
    end = "identical" if run["identical"].all() else "DIFFERENT"
    return f"{end} after {len(run)} kills, in {', '.join(run['phase'])}"
