"""What do Stable-Baselines3's agents reach with the settings in examples/zoo?

python benchmarks/zoo.py --seeds 3

Reads the YAML files as rl-baselines3-zoo does, and trains each algorithm on
ABC-RLHF-Features-Dense-v0. To save time, the rows are stepped in one batch and models compute in
bfloat16. Writes ``runs.csv`` (a row per algorithm, seed and 64 episodes), ``meta.json`` and
``table.md``; what is stored is not run again. ``--tables-only`` runs nothing.

``--search`` tries settings instead: as many for each algorithm, half as long, with one seed of
their own. It writes ``search/runs.csv`` and names the settings that the files should have.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import zoo as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "zoo"
SETTINGS = Path(__file__).parents[1] / "examples" / "zoo"
SEARCH_TIMESTEPS = 25_000
PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "stable-baselines3")


def run(only: list[str] | None, seeds: int, jobs: int, settings: Path, output: Path) -> None:
    from training.zoo import train  # on use: tables need neither models nor torch

    run_missing(
        partial(train, settings),
        [(name, seed) for seed in range(seeds) for name in only or report.ALGORITHMS],
        report.KEYS,
        output / "runs.csv",
        describe(*PACKAGES),
        order="timesteps",
        jobs=jobs,
        report=report.describe,
    )


def search(only: list[str] | None, jobs: int, settings: Path, output: Path) -> None:
    from training.zoo import try_out  # on use: tables need neither models nor torch

    run_missing(
        partial(try_out, settings, SEARCH_TIMESTEPS),
        [(name, n) for n in range(report.NUM_TRIALS) for name in only or report.ALGORITHMS],
        report.SEARCH_KEYS,
        output / "search" / "runs.csv",
        describe(*PACKAGES),
        order="timesteps",
        jobs=jobs,
        report=report.describe,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", action="append", choices=report.ALGORITHMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="folder of YAML files")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--search", action="store_true", help="try settings")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    where = arguments.jobs, arguments.settings, arguments.output
    if arguments.search:
        search(arguments.algorithm, *where)
    elif not arguments.tables_only:
        run(arguments.algorithm, arguments.seeds, *where)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
