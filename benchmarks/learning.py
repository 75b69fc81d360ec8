"""Does dense reward help the bundled PPO? Several seeds, with controls, on one of two tasks.

python benchmarks/learning.py --seeds 3 --jobs 2
python benchmarks/learning.py --task planted --seeds 10 --jobs 2

Trains PPO once per condition and seed: on ABC-RLHF-v0 (``embedded``) with the hyperparameters that
were its defaults, and on ABC-RLHF-Planted-v0 (``planted``, the best score is 10) with others, which
training/ppo.py lists. Writes

- ``runs.csv``: a row per condition, seed and iteration, with the commit that ran it;
- ``meta.json``: command, commit, versions, machine, hyperparameters;
- ``table.md``, ``statistics.md`` and ``learning_curves.png``, made from ``runs.csv`` alone.

Runs that are in ``runs.csv`` are not run again, so a stopped benchmark can be continued.
``--tables-only`` runs nothing, and makes the tables and the figure anew.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import learning as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.measures import ENDS
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results"
TASKS = {"embedded": ("ABC-RLHF-v0", 16), "planted": ("ABC-RLHF-Planted-v0", 64)}


def train_all(task: str, seeds: int, jobs: int, output: Path, iterations: int | None) -> None:
    from training import ppo  # on use: tables need neither models nor torch

    run_missing(
        partial(ppo.train, task, iterations),
        [(condition, seed) for seed in range(seeds) for condition in ppo.CONDITIONS],
        report.KEYS,
        output / "runs.csv",
        describe(*ppo.PACKAGES) | ppo.describe_runs(task),
        order="iteration",
        jobs=jobs,
        shared={"iterations": iterations},
        aliases=report.ALIASES,
        report=lambda rows: f"{rows['score'].tail(ENDS).mean():+.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="embedded")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--iterations", type=int, help="of each run; the task's by default")
    parser.add_argument("--output", type=Path, help="folder; the task's below results/ by default")
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    task = arguments.task
    output = arguments.output or RESULTS / {"embedded": "learning"}.get(task, f"learning_{task}")
    if not arguments.tables_only:
        train_all(task, arguments.seeds, arguments.jobs, output, arguments.iterations)
    print(report.write(output, *TASKS[task]))


if __name__ == "__main__":
    main()
