"""Does PPO learn in bfloat16 as in float32, and with the code of today as with that of before?

python benchmarks/precision.py --jobs 2

Trains as ``learning.py`` does, with sparse reward and with ABC, in float32 and in bfloat16, and
compares with the float32 runs of the same seeds in ``results/learning``: they were made before
sampling, attention and the log-probabilities were made faster. Those changes draw other tokens from
the same distribution, so curves can agree within noise only. Writes

- ``runs.csv``: a row per condition, dtype, seed and iteration, with the commit that ran it;
- ``meta.json``: command, versions, machine, hyperparameters;
- ``table.md`` and ``learning_curves.png``, made from both ``runs.csv`` alone.

What is in ``runs.csv`` already is not run again; ``--tables-only`` makes table and figure anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from learning import ENDS, RESULTS, SMOOTHING, run_all, train
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import ttest_ind

OUTPUT = RESULTS / "precision"
CONDITIONS = ("sparse", "ABC")
DTYPES = ("float32", "bfloat16")
BEFORE = "float32, before"
COLORS = {BEFORE: "#999999", "float32": "#0072B2", "bfloat16": "#E69F00"}


def run(condition: str, dtype: str, seed: int) -> tuple[pd.DataFrame, dict]:
    """One run: a row per iteration, and the hyperparameters."""
    argument = None if dtype == "float32" else dtype
    rows, hyperparameters = train("embedded", condition, seed, argument)
    rows.insert(1, "dtype", dtype)
    return rows, hyperparameters


def with_those_before(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of today and, with "before" as their dtype, those of ``results/learning``."""
    before = pd.read_csv(RESULTS / "learning" / "runs.csv")
    before = before[before["condition"].isin(CONDITIONS) & before["seed"].isin(runs["seed"])]
    return pd.concat([before.assign(dtype=BEFORE), runs], ignore_index=True)


def make_table(runs: pd.DataFrame) -> str:
    """A Markdown table with every seed's number."""
    lines = [
        f"Mean score and KL to the reference policy (nats per episode) over the last {ENDS} "
        "iterations, per seed and in the mean. p: of Welch's t-test, over seeds, that the mean "
        "score is that of before; with three seeds it sees large differences only. Seconds per "
        "iteration: of runs that shared the machine, two at a time.",
        "",
        "| condition | arithmetic | score | mean | p | KL | seconds per iteration |",
        "|---|---|---|---|---|---|---|",
    ]
    last = runs[runs["iteration"] > runs["iteration"].max() - ENDS]
    ends = last.groupby(["condition", "dtype", "seed"])[["score", "kl"]].mean()
    whole = runs.groupby(["condition", "dtype", "seed"])[["seconds", "iteration"]].max()
    for condition in CONDITIONS:
        for dtype in (BEFORE, *DTYPES):
            of, took = ends.loc[condition, dtype], whole.loc[condition, dtype]
            scores = ", ".join(f"{score:+.2f}" for score in of["score"])
            test = ttest_ind(of["score"], ends.loc[condition, BEFORE]["score"], equal_var=False)
            p = "" if dtype == BEFORE else f"{test.pvalue:.2f}"
            seconds = (took["seconds"] / took["iteration"]).mean()
            lines.append(
                f"| {condition} | {dtype} | {scores} | {of['score'].mean():+.2f} | {p} | "
                f"{of['kl'].mean():.1f} | {seconds:.2f} |"
            )
    return "\n".join(lines) + "\n"


def draw(runs: pd.DataFrame, path: Path) -> None:
    """Every run as a thin line, the mean over the seeds as a strong one."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, condition in zip(figure.subplots(1, 2, sharey=True), CONDITIONS, strict=True):
        for dtype, color in COLORS.items():
            rows = runs[(runs["condition"] == condition) & (runs["dtype"] == dtype)]
            wide = rows.pivot(index="iteration", columns="seed", values="score")
            smooth = wide.rolling(SMOOTHING).mean()
            axes.plot(smooth.index, smooth, color=color, alpha=0.35, linewidth=0.9)
            axes.plot(smooth.index, smooth.mean(axis=1), color=color, linewidth=2.2, label=dtype)
        axes.set_title(condition)
        axes.set_xlabel("iteration of 16 episodes")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"mean score, trailing mean over {SMOOTHING}")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(seeds: int, jobs: int, tables_only: bool) -> None:
    todo = [
        (condition, dtype, seed)
        for seed in range(0 if tables_only else seeds)
        for condition in CONDITIONS
        for dtype in DTYPES
    ]
    runs = run_all(run, todo, ["condition", "dtype", "seed"], OUTPUT, jobs)
    everything = with_those_before(runs)
    table = make_table(everything)
    (OUTPUT / "table.md").write_text(table)
    draw(everything, OUTPUT / "learning_curves.png")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--tables-only", action="store_true")
    main(**vars(parser.parse_args()))
