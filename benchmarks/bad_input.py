"""What becomes of bad input, by kind: a clear error, an error by chance, or silence?

python benchmarks/bad_input.py

Runs the tests of ``tests/bad_input``, which count what every case ends in. Writes

- ``outcomes.csv``: number of cases by area and outcome;
- ``meta.json``: command, commit, versions, machine, the summary of the tests;
- ``table.md``, made from ``outcomes.csv`` alone, which ``--tables-only`` makes anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from reports import bad_input as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.storage import write_json, write_rows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "bad_input"


def count(tests: list[str], output: Path) -> None:
    """Run tests of bad input, and store what became of their cases."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "outcomes.json")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            env=os.environ | {"TEXTGYM_BAD_INPUT": str(file)},
            capture_output=True,
            text=True,
        )
        outcomes = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        {"area": area, "outcome": outcome, "cases": cases}
        for area, counts in outcomes.items()
        for outcome, cases in counts.items()
    ]
    write_rows(pd.DataFrame(rows), output / "outcomes.csv")
    summary = done.stdout.strip().splitlines()[-1].partition(" in ")[0]
    meta = describe("torch", "transformers", "gymnasium", "hypothesis", "tyro")
    write_json(meta | {"tests": summary}, output / "meta.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", default=["tests/bad_input"], help="for pytest")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        count(arguments.tests, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
