"""Is every architecture of transformers read right, or else refused?

python benchmarks/architectures.py

Makes a tiny random model of each causal language model and each sequence classifier that the
installed transformers has, and compares what textgym reads of it with its own forward pass over
each text alone: policies in rollouts and in updates; scores, prefix scores, attention and gradients
of reward models. Writes ``architectures.csv`` (a row per architecture and way of reading),
``meta.json`` and ``table.md``; what is stored is not run again. ``--tables-only`` runs nothing.
Exits with 1 if anything is read wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reports import architectures as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "architectures"
PACKAGES = ("textgym", "torch", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", choices=report.KINDS, help="by default both")
    parser.add_argument("--architecture", action="append", help="such as llama; by default all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from training.architectures import read_architecture  # on use: tables do not need torch
        from training.tiny_models import CLASSES

        run_missing(
            read_architecture,
            [
                (kind, architecture)
                for kind in arguments.kind or report.KINDS
                for architecture in CLASSES[kind]
                if arguments.architecture is None or architecture in arguments.architecture
            ],
            report.KEYS,
            arguments.output / "architectures.csv",
            describe(*PACKAGES),
            order="way",
            jobs=arguments.jobs,
            report=report.describe,
        )
    print(report.write(arguments.output))
    if report.any_wrong(arguments.output):
        sys.exit("an architecture is read wrong")


if __name__ == "__main__":
    main()
