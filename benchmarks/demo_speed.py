"""How much faster is the demo than it was at an earlier commit?

python benchmarks/demo_speed.py 990d0b9

Checks both commits, the earlier one and the one of today, out into temporary folders, and trains
the demo's three methods with the code of either in turn. Seconds are those of training, without
imports. Let nothing else run meanwhile. Writes ``rows.csv`` (a row per round, commit and method),
``meta.json``, and from these ``table.md``, which ``--tables-only`` makes anew.

Both commits must have the same demo. It changed after ``f0c07d1``: other methods, longer texts.
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

from reports import demo_speed as report
from textgym.benchmark.circumstances import commit, describe
from textgym.benchmark.storage import write_json, write_rows

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "demo_speed"


def check_out(name: str, folder: Path) -> None:
    """Make the files of a commit importable in a folder."""
    archive = subprocess.run(["git", "archive", name], capture_output=True, check=True, cwd=ROOT)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    agents = folder / "textgym" / "agents"
    if not agents.exists():  # The link was not part of the repository at first.
        agents.symlink_to(folder / "agents")


def seconds_of_demo(root: Path, iterations: int) -> dict[str, float]:
    """Seconds of training, by method, with the code in a folder."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "textgym", "demo", "--iterations", str(iterations)]
        subprocess.run(
            [*command, "--output", output],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        lines = Path(output, "results.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    return rows.groupby("method", sort=False)["time/seconds"].max().to_dict()


def measure(before: str, iterations: int, rounds: int, output: Path) -> None:
    """Run the demo of either commit in turn; every other round begins with the later one."""
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        sides = {commit(before): Path(old), commit(): Path(new)}
        for name, folder in sides.items():
            check_out(name, folder)
        rows = [
            {"round": number, "commit": name, "method": method, "seconds": round(seconds, 3)}
            for number in range(rounds)
            for name in list(sides)[:: -1 if number % 2 else 1]
            for method, seconds in seconds_of_demo(sides[name], iterations).items()
        ]
    write_rows(pd.DataFrame(rows), output / "rows.csv")
    meta = describe("torch", "transformers", "numpy") | {"iterations": iterations}
    write_json(meta, output / "meta.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", help="an earlier commit")
    parser.add_argument("--iterations", type=int, default=10, help="of each method")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        if arguments.before is None:
            parser.error("name an earlier commit to compare with")
        measure(arguments.before, arguments.iterations, arguments.rounds, arguments.output)
    meta = json.loads((arguments.output / "meta.json").read_text())
    print(report.write(arguments.output, meta["iterations"]))


if __name__ == "__main__":
    main()
