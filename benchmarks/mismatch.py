"""How far is an outside sampler from the trained policy, by cause?

python benchmarks/mismatch.py

Completions of the embedded policy are sampled with one thing different from the policy that would
be trained on them: another dtype, another temperature, a cut-off tail, weights of an iteration ago.
The figures are those that agents log, and that ``textgym.agents.mismatch`` warns of. Writes
``runs.csv`` (a row per cause and seed), ``meta.json`` and ``table.md``; what is stored is not run
again. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import mismatch as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "mismatch"
PACKAGES = ("textgym", "torch", "transformers")


def run(seeds: int, episodes: int, only: list[str] | None, output: Path) -> None:
    from training.mismatch import CAUSES, measure  # on use: tables need neither models nor torch

    run_missing(
        partial(measure, episodes),
        [(cause, seed) for cause in only or CAUSES for seed in range(seeds)],
        report.KEYS,
        output / "runs.csv",
        describe(*PACKAGES),
        order="episodes",
        shared={"episodes": episodes},
        report=report.describe,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cause", action="append", help="one of them; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        run(arguments.seeds, arguments.episodes, arguments.cause, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
