"""Table and figure of cleanrl.py, made from runs.csv alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

from .ends import HEADER, describe, ends_row, rolling_score

__all__ = ["FLAGS", "KEYS", "SETTINGS", "describe", "write"]

KEYS = ("setting", "seed")
FLAGS = ("--gamma", "1", "--num-envs", "16", "--num-steps", "32")
"""What all runs have beside CleanRL's defaults. A rollout has 512 steps, as by default."""
_RANKS = {"k": 16, "describe_actions": False}
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "16 ranks, score at the end": (_RANKS, ()),
    "16 ranks, dense": ({**_RANKS, "dense": True}, ()),
    "4 tokens, score at the end": ({}, ()),
    "4 tokens, dense": ({"dense": True}, ()),
}
"""Arguments of ABC-RLHF-Features-v0, and further flags of the script, by setting."""
_STYLES = (("#999999", ":"), ("#CC79A7", "-."), ("#E69F00", "--"), ("#0072B2", "-"))


def write(output: Path) -> str:
    """Write ``table.md`` and ``curves.png`` from ``runs.csv``; returns the table."""
    runs = read_rows(output / "runs.csv", KEYS)
    lines = [
        [setting, *ends_row(of_setting)]
        for setting in SETTINGS
        if len(of_setting := runs[runs["setting"] == setting])
    ]
    text = "\n".join(markdown_table(["actions and reward", *HEADER], lines)) + "\n"
    (output / "table.md").write_text(text, encoding="utf-8")
    _draw(runs, output / "curves.png")
    return text


def _draw(runs: pd.DataFrame, path: Path) -> None:
    figure = new_figure(6.5, 3.6)
    axes = figure.subplots()
    for setting, (color, dashes) in zip(SETTINGS, _STYLES, strict=True):
        of_setting = runs[runs["setting"] == setting]
        for number, (_, run) in enumerate(of_setting.groupby("seed")):
            label = setting if number == 0 else None
            axes.plot(
                run["timesteps"], rolling_score(run), color=color, linestyle=dashes, label=label
            )
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean score of 256 episodes")
    axes.legend(frameon=False)
    save(figure, path)
