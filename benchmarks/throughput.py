"""How fast is textgym, beside what a user would take instead, and beside the machine's limit?

python benchmarks/throughput.py

Every figure is a ratio of two things that take turns on the same machine in the same run:

- ``readout``: scores with attention and prefix scores, against plain scores and eager attention;
- ``rollout``: episodes through the environment, against ``generate`` of transformers;
- ``iteration``: an iteration of PPO, against trl 0.7.4 in its own environment (``make trl-env``);
- ``race``: seconds to the best score of trl's sparse run, with dense reward, against trl;
- ``environment``: steps of the batched environment, against Gymnasium's ``SyncVectorEnv``;
- ``machine``: floating-point operations of a PPO update, against the fastest matrix product;
- ``choices``: what some choices in the agents' code gain, against what they replaced;
- ``growth``: time and memory against batch, length and size of the model.

Let nothing else run meanwhile. Writes ``rows.json`` (a row per ratio, with its 95% interval over
rounds and the raw seconds), ``meta.json``, and from these ``table.md`` (all ratios), ``goals.md``
(those with a goal) and ``throughput.png``. A part that is run again replaces its rows;
``--tables-only`` makes tables and figure anew.
"""

from __future__ import annotations

import argparse
import json
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circumstances import commit, describe
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from speed import choices, environment, growth, iteration, machine, readout, rollout

from textgym.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results" / "throughput"
PARTS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    "readout": readout.measure,
    "rollout": rollout.measure,
    "iteration": iteration.measure,
    "race": iteration.race,
    "environment": environment.measure,
    "machine": machine.measure,
    "choices": choices.measure,
    "growth": growth.measure,
}
PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy")
HEADER = "| case | ratio of | result | interval | goal | met |"
COMPARISONS = {">=": operator.ge, "<=": operator.le}


def is_met(row: dict[str, Any]) -> bool | None:
    """Whether a ratio reaches its goal; None without one."""
    if row["goal"] is None:
        return None
    comparison, number = row["goal"].split()
    return COMPARISONS[comparison](row["ratio"], float(number))


def make_table(rows: list[dict[str, Any]]) -> str:
    """All ratios, with goals where there are any."""
    lines = [
        "Ratios: median over interleaved rounds, with the 95% interval of the median. Raw seconds "
        "are in rows.json.",
    ]
    for part in PARTS:
        of_part = [row for row in rows if row["part"] == part]
        if of_part:
            lines += ["", f"### {part}", "", HEADER, "|---|---|---|---|---|---|"]
            lines += [_line(row) for row in of_part]
    return "\n".join(lines) + "\n"


def make_goals(rows: list[dict[str, Any]]) -> str:
    """The ratios that have a goal."""
    lines = [HEADER, "|---|---|---|---|---|---|"]
    return "\n".join(lines + [_line(row) for row in rows if row["goal"] is not None]) + "\n"


def _line(row: dict[str, Any]) -> str:
    met = {True: "yes", False: "**no**", None: ""}[is_met(row)]
    ratio, low, high = (
        f"{row[name]:{'.3f' if row[name] < 10 else '.3g'}}" for name in ("ratio", "low", "high")
    )
    return (
        f"| {row['case']} | {row['quantity']} | {ratio} | {low} to {high} | "
        f"{row['goal'] or ''} | {met} |"
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """What has a goal, on one scale: how far the result is on the right side of it."""
    rows = [row for row in rows if row["goal"] is not None][::-1]
    figure = Figure(figsize=(9, 1 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, row in enumerate(rows):
        comparison, number = row["goal"].split()
        sign = 1 if comparison == ">=" else -1
        low, middle, high = (
            (row[name] / float(number)) ** sign for name in ("low", "ratio", "high")
        )
        color = "C2" if is_met(row) else "C3"
        axes.plot([low, high], [y, y], color=color, linewidth=2)
        axes.plot(middle, y, "o", color=color)
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(
        range(len(rows)),
        [f"{row['case']}: {row['quantity']} ({row['goal']})" for row in rows],
        fontsize=7,
    )
    axes.set_xlabel("result / goal (less is better: goal / result)")
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(parts: list[str], quick: bool, output: Path, tables_only: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()  # As the agents do: no part depends on whether one ran before.
    path = output / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    meta_path = output / "meta.json"
    took = json.loads(meta_path.read_text()).get("seconds", {}) if meta_path.exists() else {}
    for part in [] if tables_only else parts or PARTS:
        start = time.perf_counter()
        measured = [{**row, "commit": commit()} for row in PARTS[part](quick)]
        took[part] = round(time.perf_counter() - start)
        print(f"{part}: {len(measured)} ratios in {took[part]} s", flush=True)
        rows = [row for row in rows if row["part"] != part] + measured
        rows.sort(key=lambda row: list(PARTS).index(row["part"]))
        path.write_text(json.dumps(rows, indent=1) + "\n")
        meta = describe(*PACKAGES) | {"seconds": took}
        meta_path.write_text(json.dumps(meta, indent=2) + "\n")
    table = make_table(rows)
    (output / "table.md").write_text(table)
    (output / "goals.md").write_text(make_goals(rows))
    draw(rows, output / "throughput.png")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", action="append", choices=PARTS, dest="parts", help="one of them; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true")
    main(**vars(parser.parse_args()))
