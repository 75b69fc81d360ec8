"""Does PPO learn in bfloat16 as in float32, and with the code of today as with that of before?

python benchmarks/precision.py --jobs 2

Trains as ``learning.py`` does, with sparse reward and with ABC, in float32 and in bfloat16, and
compares with the float32 runs of the same seeds in ``results/learning``. Those were made before
sampling, attention and log-probabilities became faster. The changes draw other tokens from the same
distribution, so the curves can only agree within noise. Writes

- ``runs.csv``: a row per condition, dtype, seed and iteration, with the commit that ran it;
- ``meta.json``: command, commit, versions, machine, hyperparameters;
- ``table.md`` and ``learning_curves.png``, made from both ``runs.csv`` alone.

Runs that are in ``runs.csv`` are not run again. ``--tables-only`` runs nothing, and makes the table
and the figure anew.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import precision as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results"


def train_all(seeds: int, jobs: int, output: Path, iterations: int | None) -> None:
    from training import ppo  # on use: tables need neither models nor torch

    run_missing(
        partial(ppo.train_in, iterations=iterations),
        [
            (condition, dtype, seed)
            for seed in range(seeds)
            for condition in report.CONDITIONS
            for dtype in report.DTYPES
        ],
        report.KEYS,
        output / "runs.csv",
        describe(*ppo.PACKAGES) | ppo.describe_runs("embedded"),
        order="iteration",
        jobs=jobs,
        report=lambda rows: f"{rows['score'].tail(10).mean():+.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--iterations", type=int, help="of each run; the task's by default")
    parser.add_argument("--output", type=Path, default=RESULTS / "precision")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        train_all(arguments.seeds, arguments.jobs, arguments.output, arguments.iterations)
    print(report.write(arguments.output, RESULTS / "learning" / "runs.csv"))


if __name__ == "__main__":
    main()
