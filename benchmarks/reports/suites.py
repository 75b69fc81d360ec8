"""Reports of the suites that were run, and our main figure beside the authors'."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark import SUITES
from textgym.benchmark.measures import best_score, reached_at
from textgym.benchmark.report import write_report
from textgym.benchmark.statistics import paired_difference, stratified_bootstrap
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["beside_the_authors", "write"]

AUTHORS = {"sparse": 7.22, "ABC": 8.32, "uniform": 6.60, "ABC-D": 6.89}
"""Mean score over a run, by method; of a reward model whose scores have another zero than ours."""
AUTHORS_SHARE = "46%"
"""Where ABC reached the peak of sparse reward: at iteration 41 of 89.

The authors' figures are recomputed from the result files that they published (10 seeds, GPT-2).
"""
CONTROLS = ("uniform", "random", "shuffled ABC", "position", "sparse, λ = 1")


def write(output: Path) -> str:
    """Write the report of every suite that has runs, and ``table.md``; returns the latter.

    Args:
        output: Has a folder for each suite that was run, with ``runs.parquet``.
    """
    for name, suite in SUITES.items():
        if (output / name / "runs.parquet").exists():
            write_report(output / name, suite)
    text = beside_the_authors(read_rows(output / "main" / "runs.parquet"))
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def beside_the_authors(runs: pd.DataFrame) -> str:
    """Tables of the suite "main", as ratios to sparse reward, beside the authors'."""
    mean = runs.groupby(["method", "seed"])["score"].mean()
    lines = []
    for method, theirs in AUTHORS.items():
        ours = stratified_bootstrap(mean[method])
        ratio = ours.value / stratified_bootstrap(mean["sparse"]).value
        lines.append([method, f"{theirs / AUTHORS['sparse']:.2f}", f"{ratio:.2f}", str(ours)])
    text = [
        "Mean score over the whole run, as a ratio to sparse reward. Scores have different zeros, "
        "so only the order compares.",
        "",
        *markdown_table(["method", "authors, ratio", "ours, ratio", "ours"], lines),
        "",
        f"Iterations of ABC to the best score of sparse reward, over its own: {AUTHORS_SHARE} in "
        f"the authors' runs, {_share(runs):.0%} here (interquartile mean over seeds; a run that "
        "does not get there counts with all of its iterations).",
        "",
        "Mean score over the run, ABC minus each control under the same seeds:",
        "",
    ]
    lines = []
    for control in CONTROLS:
        pairs = pd.concat([mean["ABC"], mean[control]], axis=1, join="inner").to_numpy()
        difference = paired_difference(pairs[:, 0], pairs[:, 1])
        lines.append([control, str(len(pairs)), str(difference)])
    text += markdown_table(["control", "seeds", "ABC minus control"], lines)
    return "\n".join(text) + "\n"


def _share(runs: pd.DataFrame) -> float:
    shares = {}
    for seed, of_seed in runs.groupby("seed"):
        by_method = {name: run for name, run in of_seed.groupby("method")}
        if {"sparse", "ABC"} <= set(by_method):
            goal = best_score(by_method["sparse"])
            own, _ = reached_at(by_method["sparse"], goal)
            there, _ = reached_at(by_method["ABC"], goal)
            length = float(by_method["ABC"]["iteration"].max())
            shares[seed] = (length if pd.isna(there) else there) / own
    return stratified_bootstrap(pd.Series(shares)).value
