"""Table and figure of cleanrl.py, made from runs.csv alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table, write_tables

from .ends import HEADER, describe, ends_row, rolling_score

__all__ = ["FLAGS", "KEYS", "SETTINGS", "describe", "write"]

KEYS = ("setting", "seed")
FLAGS = ("--gamma", "1", "--num-envs", "16", "--num-steps", "32")
"""What all runs have beside CleanRL's defaults. A rollout has 512 steps, as by default."""
_BASE = "4 tokens, score at the end"
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    f"{k} {seen}, {reward}": ({"k": k, "describe_actions": described, "dense": dense}, ())
    for seen, described in (("ranks", False), ("tokens", True))
    for k in (16, 4)
    for reward, dense in (("score at the end", False), ("dense", True))
}
"""Arguments of ABC-RLHF-Features-v0, and further flags of the script, by setting."""
_CHANGES = (
    ("--gae-lambda", "1"),
    ("--ent-coef", "0"),
    ("--num-steps", "64"),
    ("--no-anneal-lr",),
)
_CHANGES += (tuple(word for change in _CHANGES for word in change),)
CHANGED = {f"{_BASE}, {' '.join(change)}": change for change in _CHANGES}
"""Flags of the script that are changed one at a time, then all at once, by setting."""
SETTINGS |= {setting: (SETTINGS[_BASE][0], change) for setting, change in CHANGED.items()}
SETTINGS["4 tokens, dense, --no-anneal-lr"] = SETTINGS["4 tokens, dense"][0], ("--no-anneal-lr",)
_STYLES = {
    "16 ranks, score at the end": ("#999999", ":"),
    "16 ranks, dense": ("#CC79A7", "-."),
    "4 tokens, score at the end": ("#E69F00", "--"),
    "4 tokens, dense": ("#0072B2", "-"),
    "4 tokens, dense, --no-anneal-lr": ("#009E73", "-"),
}
"""Color and dashes of the settings that are drawn."""


def write(output: Path) -> str:
    """Write ``table.md`` and ``curves.png`` from ``runs.csv``; returns the table."""
    runs = read_rows(output / "runs.csv", KEYS)
    cells = {
        setting: ends_row(of_setting)
        for setting in SETTINGS
        if len(of_setting := runs[runs["setting"] == setting])
    }
    settings = [[name, *row] for name, row in cells.items() if name not in CHANGED]
    tables = [markdown_table(["actions and reward", *HEADER], settings)]
    flags = [
        [f"`{' '.join(CHANGED[name])}`", *row] for name, row in cells.items() if name in CHANGED
    ]
    if flags:
        unchanged = [["none", *cells[_BASE]]] if _BASE in cells else []
        tables.append(markdown_table(["flags changed", *HEADER], unchanged + flags))
    _draw(runs, output / "curves.png")
    return write_tables(output, *tables)


def _draw(runs: pd.DataFrame, path: Path) -> None:
    figure = new_figure(6.5, 3.6)
    axes = figure.subplots()
    for setting, (color, dashes) in _STYLES.items():
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
