"""What do memory and time come to for policies of 0.1 to 70 billion parameters?

python benchmarks/scale.py

Operations and bytes of an iteration of PPO are counted from the shape of a model
(``counting/``; the tests hold the counts against PyTorch's own). Then whole iterations of models of
up to 135 million parameters are measured, each in a fresh process of one thread, and single passes
over a minibatch. Models have random weights, and all texts have one length. Writes
``iterations.csv``, ``forwards.csv``, ``meta.json``, and from the rows and the counts ``table.md``.
What is stored is not run again; ``--tables-only`` runs nothing. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import scale as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "scale"
PACKAGES = ("textgym", "torch", "transformers", "peft")


def run(iterations: int, only: list[str] | None, output: Path) -> None:
    from counting.cases import CASES, FORWARDS
    from counting.measurements import measure_forwards, train  # on use: tables need no torch

    for cases, function, name in (
        (CASES, partial(train, iterations), "iterations.csv"),
        (FORWARDS, measure_forwards, "forwards.csv"),
    ):
        for case in cases:
            if only is None or case in only:
                run_missing(
                    function,
                    [(case,)],
                    report.KEYS,
                    output / name,
                    describe(*PACKAGES),
                    order="iteration",
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", help="one of them; may be repeated")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        run(arguments.iterations, arguments.case, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
