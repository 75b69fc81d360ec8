"""Reports of the suites that were run, and our figures beside those of the paper's authors.

The authors' figures are recomputed from the result files that they published (10 seeds, GPT-2).
Their reward model's scores have another zero than ours, so all is shown as ratios to sparse reward.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from textgym.benchmark import SUITES
from textgym.benchmark.comparison import pairs_of_seeds
from textgym.benchmark.measures import ENDS
from textgym.benchmark.report import measure_all, write_report
from textgym.benchmark.statistics import paired_difference, stratified_bootstrap
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["beside_the_authors", "by_beta", "by_length", "write"]

AUTHORS = {"sparse": 7.22, "ABC": 8.32, "uniform": 6.60, "ABC-D": 6.89}
"""Mean score over a run, by method."""
AUTHORS_SHARE = "46%"
"""Where ABC reached the peak of sparse reward: at iteration 41 of 89."""
AUTHORS_BETA = {0.1: 7.79, 1.0: 8.80}
"""Mean score over a run of ABC, by β."""
AUTHORS_LONG = {"sparse": 6.27, "uniform": 9.91, "ABC": 11.26}
"""Score at the end at 140 to 160 tokens, by method."""
CONTROLS = ("uniform", "random", "shuffled ABC", "position", "sparse, λ = 1")
PUBLISHED = " (published)"
READINGS = (("main", "As tuned", ""), ("published", "As published", PUBLISHED))
"""By suite, the reading of the main figure, and what its names of methods end with."""


def write(output: Path) -> str:
    """Write the report of every suite that has runs, and ``table.md``; returns the latter.

    Args:
        output: Has a folder for each suite that was run, with ``runs.parquet``.
    """
    runs = {
        name: read_rows(output / name / "runs.parquet")
        for name in SUITES
        if (output / name / "runs.parquet").exists()
    }
    for name in runs:
        write_report(output / name, SUITES[name])
    parts = [
        f"# {title}\n\n{beside_the_authors(_without_suffix(runs[name], suffix))}"
        for name, title, suffix in READINGS
        if name in runs
    ]
    if "beta" in runs:
        parts.append(f"# By β\n\n{by_beta(runs['beta'])}")
    if "length" in runs:
        parts.append(f"# By length\n\n{by_length(runs['length'])}")
    text = "\n".join(parts)
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def beside_the_authors(runs: pd.DataFrame) -> str:
    """Tables of a suite with the methods of the main figure, as ratios to sparse reward."""
    mean = runs.groupby(["method", "seed"])["score"].mean()
    base = stratified_bootstrap(mean["sparse"]).value
    measured = measure_all(runs, "sparse")
    share = stratified_bootstrap(measured.loc[measured["method"] == "ABC", "share"].dropna())
    lines = []
    for method, theirs in AUTHORS.items():
        ours = stratified_bootstrap(mean[method])
        lines.append(
            [method, _ratio(theirs, AUTHORS["sparse"]), _ratio(ours.value, base), str(ours)]
        )
    text = [
        "Mean score over the whole run, as a ratio to sparse reward. Scores have different zeros, "
        "so only the order compares.",
        "",
        *markdown_table(["method", "authors, ratio", "ours, ratio", "ours"], lines),
        "",
        f"Iterations of ABC to the best score of sparse reward, over its own: {AUTHORS_SHARE} in "
        f"the authors' runs, {share.value:.0%} here (interquartile mean over seeds; a run that "
        "does not get there counts with all of its iterations).",
        "",
        f"ABC minus its controls under the same seeds: the mean score over the run, and that over "
        f"the last {ENDS} iterations.",
        "",
    ]
    final = measured.set_index(["method", "seed"])["final"]
    lines = []
    for control in CONTROLS:
        of_run, at_the_end = (
            pairs_of_seeds(scores["ABC"], scores[control]) for scores in (mean, final)
        )
        differences = (str(paired_difference(*pairs.T)) for pairs in (of_run, at_the_end))
        lines.append([control, str(len(of_run)), *differences])
    text += markdown_table(["ABC minus", "seeds", "mean over the run", "at the end"], lines)
    return "\n".join(text) + "\n"


def by_beta(runs: pd.DataFrame) -> str:
    """The mean score over a run against β; β = 0 is sparse reward."""
    mean = runs.groupby(["method", "seed"])["score"].mean()
    suite = SUITES["beta"]
    base = stratified_bootstrap(mean[suite.baseline]).value
    lines = []
    for name in suite.methods:
        beta = float(name.removeprefix("β = ").removesuffix(PUBLISHED))
        theirs = AUTHORS["sparse"] if beta == 0 else AUTHORS_BETA.get(beta)
        ours = stratified_bootstrap(mean[name])
        ratio = "–" if theirs is None else _ratio(theirs, AUTHORS["sparse"])
        lines.append([f"{beta:g}", ratio, _ratio(ours.value, base), str(ours)])
    text = [
        "Mean score over the whole run, as a ratio to β = 0, which is sparse reward. "
        f"{runs['seed'].nunique()} seeds.",
        "",
        *markdown_table(["β", "authors, ratio", "ours, ratio", "ours"], lines),
    ]
    return "\n".join(text) + "\n"


def by_length(runs: pd.DataFrame) -> str:
    """How each method does at each length of the completions, beside the authors' longest."""
    suite = SUITES["length"]
    measured = measure_all(runs, suite.baseline)
    lines = []
    for task in suite.tasks:
        of_task = measured[measured["task"] == task]
        base = None
        for method in suite.methods:
            rows = of_task[of_task["method"] == method]
            if not len(rows):
                continue
            final = stratified_bootstrap(rows["final"])
            base = final.value if method == suite.baseline else base
            long = task == suite.tasks[-1] and method in AUTHORS_LONG
            share = rows["share"].dropna()
            lines.append(
                [
                    task,
                    method,
                    str(len(rows)),
                    _ratio(AUTHORS_LONG[method], AUTHORS_LONG["sparse"]) if long else "–",
                    "–" if base is None else _ratio(final.value, base),
                    str(final),
                    f"{stratified_bootstrap(share).value:.0%}" if len(share) else "–",
                    f"{rows['collapsed'].sum():.0f}",
                ]
            )
    header = ["tokens", "method", "seeds", "authors, ratio", "ours, ratio", "ours"]
    text = [
        f"Score at the end, mean over the last {ENDS} iterations, as a ratio to sparse reward; and "
        "the iterations to the best score of sparse reward, over its own.",
        "",
        *markdown_table([*header, "iterations", "collapsed"], lines),
    ]
    return "\n".join(text) + "\n"


def _without_suffix(runs: pd.DataFrame, suffix: str) -> pd.DataFrame:
    return runs.assign(method=runs["method"].str.removesuffix(suffix)) if suffix else runs


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}"
