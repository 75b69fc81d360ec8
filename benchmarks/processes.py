"""Do two processes learn like one, and how long does an iteration take?

python benchmarks/processes.py

``textgym train`` on the task of the demo, with its settings for the prefix score: alone on one
core, alone on two cores, and as two processes on a core each, started by torchrun. Writes
``runs.csv`` (a row per iteration), ``meta.json``, ``curves.png`` and ``table.md``; what is stored
is not run again. ``--tables-only`` runs nothing. Times mean something on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import processes as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "processes"
PACKAGES = ("textgym", "torch", "transformers", "accelerate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32_000, help="of each run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from training.processes import train  # on use: tables do not need torch

        run_missing(
            partial(train, arguments.tokens),
            [
                (*setup, seed)  # all set-ups of a seed in a row: they meet the same machine
                for seed in range(arguments.seeds)
                for setup in report.SETUPS
            ],
            report.KEYS,
            arguments.output / "runs.csv",
            describe(*PACKAGES),
            order="iteration",
            report=report.describe,
        )
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
