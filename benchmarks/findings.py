"""Our main figure beside the authors': ratios to sparse reward, from the runs of the suite "main".

python benchmarks/findings.py

Reads ``results/suites/main/runs.parquet``, which ``textgym benchmark run main`` made, and writes
``findings.md`` beside it. The authors' figures are recomputed from the result files that they
published (10 seeds, GPT-2, IMDb).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from textgym.benchmark.measures import best_score, reached_at
from textgym.benchmark.statistics import paired_difference, stratified_bootstrap
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "suites" / "main"
AUTHORS = {"sparse": 7.22, "ABC": 8.32, "uniform": 6.60, "ABC-D": 6.89}
"""Mean score over a run, by method; of a reward model whose scores have another zero than ours."""
AUTHORS_SHARE = "46%"
"""Where ABC reached the peak of sparse reward: at iteration 41 of 89."""
CONTROLS = ("uniform", "random", "shuffled ABC", "position", "sparse, λ = 1")


def make_tables(runs: pd.DataFrame) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    text = make_tables(read_rows(arguments.output / "runs.parquet"))
    (arguments.output / "findings.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
