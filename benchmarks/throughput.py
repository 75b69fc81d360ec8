"""How fast is textgym, beside what a user would take instead, and beside the machine's limit?

python benchmarks/throughput.py

Every number is a ratio of two things that take turns on the same machine in the same run:

- ``readout``: scores with attention and prefix scores, against plain scores and eager attention;
- ``lean``: reading the newest token with the library's forward pass, against our own;
- ``rollout``: episodes through the environment, against ``generate`` of transformers;
- ``peers``: the same, against faster ways to sample;
- ``stages``: tokens per second of the environment, with scores, of a rollout, of an iteration;
- ``iteration``: an iteration of PPO, against trl 0.7.4 in its own environment (``make trl-env``);
- ``race``: seconds to the best score of trl's sparse run, with dense reward, against trl;
- ``environment``: steps of the batched environment, against Gymnasium's ``SyncVectorEnv``;
- ``machine``: floating-point operations of a PPO update, against the fastest matrix product;
- ``choices``: what some choices in the agents' code gain, against what they replaced;
- ``sb3``: an iteration of SB3's PPO with a language model, against reading every text anew;
- ``growth``: time and memory against batch, length and size of the model.

Where the processor has no instructions for bfloat16, the parts that compare dtypes leave it out.
Let nothing else run meanwhile. Writes ``rows.json`` (a row per ratio, with its 95% interval over
rounds and the raw seconds), ``meta.json``, and from the rows ``table.md`` (all ratios),
``goals.md`` (those with a goal) and ``throughput.png``. A part that is run again replaces its rows.
``--tables-only`` measures nothing, and makes the tables and the figure anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from reports import throughput as report
from textgym.benchmark.circumstances import commit_of_code, describe
from textgym.benchmark.storage import write_json

RESULTS = Path(__file__).parent / "results" / "throughput"
PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy")


def measure(parts: list[str], quick: bool, output: Path) -> None:
    from textgym.memory import keep_freed_memory

    keep_freed_memory()  # As the command line does, so that no part depends on those before it.
    path, meta_path = output / "rows.json", output / "meta.json"
    took = json.loads(meta_path.read_text()).get("seconds", {}) if meta_path.exists() else {}
    for part in parts:
        start = time.perf_counter()
        measured = importlib.import_module(f"speed.{part}").measure(quick)
        took[part] = round(time.perf_counter() - start)
        print(f"{part}: {len(measured)} ratios in {took[part]} s", flush=True)
        rows = [row for row in report.read(path) if row["part"] != part]
        rows += [{**row, "commit": commit_of_code()} for row in measured]
        rows.sort(key=lambda row: report.PARTS.index(row["part"]))
        write_json(rows, path, indent=1)
        write_json(describe(*PACKAGES) | {"seconds": took}, meta_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", action="append", choices=report.PARTS, help="one of them; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        measure(arguments.part or list(report.PARTS), arguments.quick, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
