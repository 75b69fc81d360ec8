"""The suites of ``textgym benchmark``, with their results kept here.

python benchmarks/suites.py --suite main --jobs 2 --dtype bfloat16

Runs what is missing of a suite into ``results/suites/SUITE``, as ``textgym benchmark run``. Then
writes the reports of all suites that have runs, and ``table.md``, the main figure beside that of
the paper's authors, and the page ``docs/leaderboard.md``. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from reports import suites as report
from reports.leaderboard import make_leaderboard
from textgym.benchmark import SUITES, TASKS
from textgym.benchmark.storage import read_rows

RESULTS = Path(__file__).parent / "results" / "suites"
LEADERBOARD = Path(__file__).parents[1] / "docs" / "leaderboard.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default="main")
    parser.add_argument("--seeds", type=int, help="by default the suite's")
    parser.add_argument("--task", action="append", choices=TASKS, help="by default all")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from textgym.benchmark.running import run_suite  # on use: tables do not need torch

        run_suite(
            SUITES[arguments.suite],
            arguments.output / arguments.suite,
            seeds=arguments.seeds,
            tasks=arguments.task or (),
            jobs=arguments.jobs,
            dtype=arguments.dtype,
        )
    print(report.write(arguments.output))
    entries = arguments.output / "leaderboard"
    if arguments.output == RESULTS and (entries / "meta.json").exists():
        methods = json.loads((entries / "meta.json").read_text(encoding="utf-8"))["methods"]
        page = make_leaderboard(read_rows(entries / "runs.parquet"), methods)
        LEADERBOARD.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
