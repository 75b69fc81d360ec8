"""Does memory stay flat, and do caches stay right, over a hundred thousand episodes?

python benchmarks/soak.py

Plays the batched environment with shaping, a penalty, credit and features on top of it, random
actions among the sixteen most probable tokens. Every thousand episodes it notes the resident memory
(of Linux) and the largest difference between what was read token by token, with caches, and full
forward passes over the same texts. Writes ``soak.csv``, ``meta.json`` and ``table.md``; a finished
soak of this length is not run again. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reports import soak as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "soak"
PACKAGES = ("textgym", "torch", "transformers", "gymnasium")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from training.soak import soak  # on use: tables do not need torch

        run_missing(
            soak,
            [(arguments.episodes, 0)],
            report.KEYS,
            arguments.output / "soak.csv",
            describe(*PACKAGES),
            order="episodes",
            report=report.describe,
        )
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
