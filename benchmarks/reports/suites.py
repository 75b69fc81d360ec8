"""Reports of the suites that were run, and our figures beside those of the paper's authors.

The authors' figures are recomputed from the result files that they published (10 seeds, GPT-2):
``results/numerics`` of github.com/XanderJC/attention-based-credit, commit 0a08591. Each has its own
sparse reward, because the lengths of the runs differ. Their reward model's scores have another zero
than ours, so all is shown as ratios to sparse reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from textgym.benchmark import SUITES
from textgym.benchmark.comparison import corrected_by_holm, format_p, pairs_of_seeds
from textgym.benchmark.measures import ENDS
from textgym.benchmark.report import measure_all, write_report
from textgym.benchmark.statistics import (
    interquartile_mean,
    paired_difference,
    stratified_bootstrap,
)
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = [
    "beside_the_authors",
    "by_beta",
    "by_length",
    "share_of_mean_curves",
    "share_of_other_seeds",
    "write",
]

AUTHORS = {"sparse": 7.22, "ABC": 8.32, "uniform": 6.60, "ABC-D": 6.89}
"""Mean score over the 101 iterations that they plot, by method."""
AUTHORS_SHARE = "46%"
"""Where the mean curve of ABC passes the peak of sparse reward's: in iteration 41, not 89."""
AUTHORS_BETA = {
    0.0: 7.94,
    0.1: 7.79,
    0.2: 8.28,
    0.3: 8.30,
    0.4: 8.40,
    0.5: 8.48,
    0.6: 8.50,
    0.7: 8.62,
    0.8: 8.64,
    0.9: 8.72,
    1.0: 8.80,
}
"""Mean score over a run of 251 iterations of ABC, by β; 0 is sparse reward."""
AUTHORS_BY_LENGTH = {
    "20-30": {"sparse": 9.58, "uniform": 9.20, "ABC": 10.47},
    "40-60": {"sparse": 9.81, "uniform": 9.51, "ABC": 11.08},
    "90-110": {"sparse": 7.40, "uniform": 9.99, "ABC": 11.18},
    "140-160": {"sparse": 6.27, "uniform": 9.91, "ABC": 11.26},
}
"""Mean score over the last 10 of 151 iterations, by the number of tokens and the method."""
CONTROLS = ("uniform", "random", "shuffled ABC", "position", "sparse, λ = 1")
PUBLISHED = " (published)"
_MINUS_CONTROLS = (
    "ABC minus its controls under the same seeds: the mean score over the run, the same with an "
    "iteration above the KL budget counted less (its share, budget/KL), and the mean over the last "
    f"{ENDS} iterations; and what two judges that no policy was trained on say of fresh "
    "completions after the run, in log-odds. Mean differences with the 95% interval of a paired "
    "t-test, and its p after Holm's correction for the column."
)
_JUDGES = {"gold": "fresh_gold", "outside scorer": "fresh_outside"}
"""By heading, the column of rows with the log-odds of another judge."""
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
    of_means = share_of_mean_curves(runs, "ABC", "sparse")
    without_gain = share_of_other_seeds(runs, "sparse")
    ours_of_means = "not reached" if of_means is None else f"{of_means:.0%}"
    lines = []
    for method, theirs in AUTHORS.items():
        ours = stratified_bootstrap(mean[method])
        lines.append(
            [method, _ratio(theirs, AUTHORS["sparse"]), _ratio(ours.value, base), str(ours)]
        )
    text = [
        "Mean score over the run, as a ratio to sparse reward: the authors' of the 101 iterations "
        f"that they plot, ours of {runs['iteration'].max()}. Scores have different zeros, so only "
        "the order compares.",
        "",
        *markdown_table(["method", "authors, ratio", "ours, ratio", "ours"], lines),
        "",
        "Iterations of ABC to the best score of sparse reward, over its own, on the curves of mean "
        f"scores over seeds, as the authors count: {AUTHORS_SHARE} in their runs, {ours_of_means} "
        f"here. Seed by seed: {share.value:.0%} (interquartile mean; a run that does not get there "
        "counts with all of its iterations). A run of sparse reward that is held against the best "
        f"score of another seed takes {without_gain:.0%}, counted likewise.",
        "",
        _MINUS_CONTROLS,
        "",
        *_minus_controls(runs, measured, CONTROLS),
    ]
    return "\n".join(text) + "\n"


def _minus_controls(
    runs: pd.DataFrame, measured: pd.DataFrame, controls: Sequence[str]
) -> list[str]:
    """ABC minus its controls on one task, as lines of a table."""
    by_seed = measured.set_index(["method", "seed"])
    compared = {
        "mean over the run": runs.groupby(["method", "seed"])["score"].mean(),
        "at the KL budget": by_seed["area"],
        "at the end": by_seed["final"],
    }
    last = runs.groupby(["method", "seed"]).tail(1).set_index(["method", "seed"])
    compared |= {name: last[column] for name, column in _JUDGES.items() if column in last}
    columns = []
    for scores in compared.values():
        pairs = {c: pairs_of_seeds(scores["ABC"], scores[c]) for c in controls}
        differences = {c: paired_difference(*both.T) for c, both in pairs.items()}
        p_values = corrected_by_holm(differences)
        columns.append([f"{differences[c]}, p {format_p(p_values[c])}" for c in controls])
    seeds = [str(len(both)) for both in pairs.values()]
    lines = [list(cells) for cells in zip(controls, seeds, *columns, strict=True)]
    return markdown_table(["ABC minus", "seeds", *compared], lines)


def share_of_mean_curves(runs: pd.DataFrame, method: str, baseline: str) -> float | None:
    """Iterations until a method passes the peak of the baseline, over those of the baseline.

    Counted as the authors do (experiments/plotting/IMDb.py): on curves of the mean score over
    seeds, not smoothed. None if the method does not get there.
    """
    curves = runs.groupby(["iteration", "method"])["score"].mean().unstack("method")
    above = curves.index[curves[method] > curves[baseline].max()]
    return float(above[0] / curves[baseline].idxmax()) if len(above) else None


def share_of_other_seeds(runs: pd.DataFrame, baseline: str) -> float:
    """What a method that is no faster than the baseline would show as its share of iterations.

    Each run of the baseline is held against the best score of every other seed, as
    :func:`textgym.benchmark.report.measure_all` does with the runs of a method. Only half of them
    can get there, so this is not 100%. Interquartile mean over the pairs; NaN of one seed.
    """
    of_baseline = runs[runs["method"] == baseline]
    seeds = sorted(of_baseline["seed"].unique())
    shares = []
    for shift in range(1, len(seeds)):
        others = dict(zip(seeds, seeds[shift:] + seeds[:shift], strict=True))
        again = of_baseline.assign(method="again", seed=of_baseline["seed"].map(others))
        measured = measure_all(pd.concat([of_baseline, again]), baseline)
        shares.extend(measured.loc[measured["method"] == "again", "share"])
    return interquartile_mean(shares) if shares else float("nan")


def by_beta(runs: pd.DataFrame) -> str:
    """The mean score over a run against β; β = 0 is sparse reward."""
    mean = runs.groupby(["method", "seed"])["score"].mean()
    suite = SUITES["beta"]
    base = stratified_bootstrap(mean[suite.baseline]).value
    lines = []
    betas = {name: float(name.split(" ")[2]) for name in suite.methods}
    of_seeds = mean.unstack("seed").loc[list(betas)].dropna(axis=1)
    slope = paired_difference(
        np.polyfit(list(betas.values()), of_seeds, deg=1)[0], np.zeros(of_seeds.shape[1])
    )
    for name, beta in betas.items():
        ours = stratified_bootstrap(mean[name])
        theirs = _ratio(AUTHORS_BETA[beta], AUTHORS_BETA[0.0])
        lines.append([f"{beta:g}", theirs, _ratio(ours.value, base), str(ours)])
    text = [
        "Mean score over the whole run, as a ratio to β = 0, which is sparse reward: the authors' "
        f"of 251 iterations, ours of {runs['iteration'].max()} ({runs['seed'].nunique()} seeds).",
        "",
        *markdown_table(["β", "authors, ratio", "ours, ratio", "ours"], lines),
        "",
        f"Slope of the score against β, a line through each seed: {slope}, p {format_p(slope.p)}.",
    ]
    return "\n".join(text) + "\n"


def by_length(runs: pd.DataFrame) -> str:
    """How each method does at each length of the completions, beside the authors' runs."""
    suite = SUITES["length"]
    measured = measure_all(runs, suite.baseline)
    lines = []
    for task in suite.tasks:
        of_task = measured[measured["task"] == task]
        curves = runs[runs["task"] == task]
        base = None
        for method in suite.methods:
            rows = of_task[of_task["method"] == method]
            if not len(rows):
                continue
            final = stratified_bootstrap(rows["final"])
            base = final.value if method == suite.baseline else base
            authors = AUTHORS_BY_LENGTH.get(task, {})
            shares = ["–", "–"]
            if method == suite.baseline:
                shares[1] = _percent(share_of_other_seeds(curves, method))
            elif base is not None:
                shares[0] = _percent(share_of_mean_curves(curves, method, suite.baseline))
                shares[1] = _percent(stratified_bootstrap(rows["share"].dropna()).value)
            lines.append(
                [
                    task,
                    method,
                    str(len(rows)),
                    _ratio(authors[method], authors["sparse"]) if method in authors else "–",
                    "–" if base is None else _ratio(final.value, base),
                    str(final),
                    *shares,
                    f"{rows['collapsed'].sum():.0f}",
                ]
            )
    header = ["tokens", "method", "seeds", "authors, ratio", "ours, ratio", "ours"]
    shares = ["iterations, mean curves", "iterations, by seed"]
    text = [
        f"Score at the end, mean over the last {ENDS} iterations, as a ratio to sparse reward (the "
        "authors': of 151 iterations); and the iterations to the best score of sparse reward, over "
        "its own: on the curves of mean scores over seeds, as the authors count (–: does not get "
        "there), and seed by seed. In the line of sparse reward: its runs held against the best "
        "scores of its other seeds, which is what a method that is no faster would show.",
        "",
        *markdown_table([*header, *shares, "collapsed"], lines),
    ]
    tables = []
    for task in suite.tasks:
        curves, of_task = runs[runs["task"] == task], measured[measured["task"] == task]
        controls = [control for control in CONTROLS if control in set(curves["method"])]
        if controls and "ABC" in set(curves["method"]):
            tables += ["", f"## {task}", "", *_minus_controls(curves, of_task, controls)]
    if tables:
        text += ["", _MINUS_CONTROLS, *tables]
    return "\n".join(text) + "\n"


def _without_suffix(runs: pd.DataFrame, suffix: str) -> pd.DataFrame:
    return runs.assign(method=runs["method"].str.removesuffix(suffix)) if suffix else runs


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:.0%}"


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}"
