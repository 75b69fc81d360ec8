"""What does each credit know, what does it distort, and what does it cost?

python benchmarks/credit_fidelity.py

Every method of credit assignment, all of the score redistributed (β = 1, γ = 1), on two tasks:

- the planted task (ABC-RLHF-Planted-v0), whose true contributions are known;
- IMDb completions (extra ``textgym[benchmarks]``), scored by the embedded reward model.

The parts, each of which writes its raw numbers:

- ``correlation``: rank correlation with the true contributions, per completion (planted);
- ``gradient``: the policy gradient over all completions of a prompt, enumerated: its cosine with
  that of sparse reward, and the variance of the estimate from one episode (planted);
- ``erasure``: deletion and insertion curves, with comprehensiveness and sufficiency;
- ``completeness``: how far integrated gradients are from summing to the score;
- ``cost``: extra passes through the models, and time per completion relative to plain scoring.

Table and figure are made from the raw numbers alone; ``--tables-only`` makes them anew.
``--also my_module:my-credit --output ...`` measures a method of your own beside the others. The
times are only right on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

from reports import fidelity as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.storage import write_json

RESULTS = Path(__file__).parent / "results" / "credit_fidelity"
PARTS = ("correlation", "gradient", "erasure", "completeness", "cost")
PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy", "scipy", "captum")


def measure(output: Path, parts: list[str], also: list[str]) -> None:
    import torch  # on use: tables need neither models nor torch

    from fidelity.task import METHODS

    output.mkdir(parents=True, exist_ok=True)
    methods = METHODS | {name: (name, {}) for name in also}
    path = output / "meta.json"
    for part in parts:
        circumstances = describe(*PACKAGES) | {"threads": torch.get_num_threads()}
        start = time.perf_counter()
        importlib.import_module(f"fidelity.{part}").measure(output, methods)
        seconds = round(time.perf_counter() - start)
        meta = json.loads(path.read_text()) if path.exists() else {}
        write_json(meta | {part: circumstances | {"seconds": seconds}}, path)
        print(f"{part}: {seconds} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--also", nargs="*", default=[], help='further methods by name, "module:name" for your own'
    )
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        measure(arguments.output, arguments.parts, arguments.also)
    if missing := report.missing(arguments.output):
        print(f"no table yet: {', '.join(missing)} not there")
    else:
        print(report.write(arguments.output))


if __name__ == "__main__":
    main()
