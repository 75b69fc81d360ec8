"""Is a run that was killed again and again the run that it would have been?

python benchmarks/kills.py

Trains an agent to the end, and again with the same seed while its process is killed (SIGKILL) at
random moments and started anew. At the end, weights, optimizer and log of both runs must be equal
bit for bit. PPO, RLOO and GRPO go on from their own checkpoints, written in every iteration;
Stable-Baselines3's PPO from its zip files. Writes ``kills.csv`` (a row per kill: what it hit),
``meta.json`` and ``table.md``; what is stored is not run again. ``--tables-only`` runs nothing.
Exits with 1 if two runs differ.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from reports import kills as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "kills"
PACKAGES = ("textgym", "torch", "transformers", "stable-baselines3", "safetensors")
RUNS = {"ppo": 10, "rloo": 2, "grpo": 2, "sb3": 2}
"""Runs per agent, each with another seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agent", action="append", choices=RUNS, help="by default all")
    parser.add_argument("--runs", type=int, help="per agent; by default 10 of PPO, 2 of others")
    parser.add_argument("--kills", type=int, default=5, help="per run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from training.kills import kill_and_compare  # on use: tables do not need torch

        run_missing(
            partial(kill_and_compare, arguments.kills),
            [
                (agent, seed)
                for agent in arguments.agent or RUNS
                for seed in range(arguments.runs or RUNS[agent])
            ],
            report.KEYS,
            arguments.output / "kills.csv",
            describe(*PACKAGES),
            order="kill",
            report=report.describe,
        )
    print(report.write(arguments.output))
    if report.any_differs(arguments.output):
        sys.exit("a run that was killed differs from the unbroken one")


if __name__ == "__main__":
    main()
