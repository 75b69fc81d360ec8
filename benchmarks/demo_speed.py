"""How much faster is the demo than it was at an earlier commit?

python benchmarks/demo_speed.py 990d0b9

Checks the commit out into a temporary folder and trains the demo's three methods with its code and
with that of today, in turn. Seconds are those of training, without imports. Writes ``rows.csv`` (a
row per round, side and method), ``meta.json`` and ``table.md``. Let nothing else run meanwhile.
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
from circumstances import commit, describe
from speed.timing import Comparison

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).parent / "results" / "demo_speed"


def check_out(name: str, folder: Path) -> None:
    """Make a commit's files importable in a folder."""
    archive = subprocess.run(["git", "archive", name], capture_output=True, check=True, cwd=ROOT)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    (folder / "textgym" / "agents").symlink_to(folder / "agents")  # as the installation has it


def seconds_of_demo(root: Path, iterations: int) -> dict[str, float]:
    """Seconds of training, by method, with the code of a folder."""
    with tempfile.TemporaryDirectory() as output:
        subprocess.run(
            [
                *(sys.executable, "-m", "textgym", "demo"),
                *("--iterations", str(iterations), "--output", output),
            ],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        lines = Path(output, "results.jsonl").read_text().splitlines()
    rows = pd.DataFrame([json.loads(line) for line in lines])
    return rows.groupby("method", sort=False)["time/seconds"].max().to_dict()


def main(before: str, iterations: int, rounds: int) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        sides = {before: Path(old), commit(): Path(new)}
        for name, folder in sides.items():
            check_out(name, folder)
        rows = [
            {"round": number, "commit": name, "method": method, "seconds": round(seconds, 3)}
            for number in range(rounds)
            for name in list(sides)[:: -1 if number % 2 else 1]
            for method, seconds in seconds_of_demo(sides[name], iterations).items()
        ]
    table = pd.DataFrame(rows)
    table.to_csv(OUTPUT / "rows.csv", index=False)
    (OUTPUT / "meta.json").write_text(
        json.dumps(describe("torch", "transformers", "numpy"), indent=2) + "\n"
    )
    old_name, new_name = sides
    lines = [
        f"Seconds of training, {iterations} iterations, median of {rounds} rounds in turn; ratio "
        "of the rounds with the 95% interval of its median.",
        "",
        f"| method | {old_name} | {new_name} | ratio |",
        "|---|---|---|---|",
    ]
    wide = table.pivot_table(index=["method", "round"], columns="commit", values="seconds")
    for method in (*table["method"].unique(), "all"):
        of = wide.groupby("round").sum() if method == "all" else wide.loc[method]
        times = Comparison({name: of[name].tolist() for name in sides})
        ratio, low, high = times.ratio(old_name, new_name)
        lines.append(
            f"| {method} | {times.median(old_name):.1f} | {times.median(new_name):.1f} | "
            f"{ratio:.2f} ({low:.2f} to {high:.2f}) |"
        )
    text = "\n".join(lines) + "\n"
    (OUTPUT / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", help="an earlier commit")
    parser.add_argument("--iterations", type=int, default=10, help="of each method")
    parser.add_argument("--rounds", type=int, default=5)
    main(**vars(parser.parse_args()))
