"""Which agents learn to write, under which reward? Five seeds each, beside an agent at random.

python benchmarks/agents.py --seeds 5 --jobs 2

Two forms of one task, 16 tokens per completion:

- agents for small control problems see features of the embedded language model and choose among its
  16 likeliest tokens (ABC-RLHF-Features-v0 with k=16, describe_actions=False);
- language models see the tokens and choose among all of them (ABC-RLHF-v0).

Each run has one thread; its time is processor time. Models compute in bfloat16, apart from the
policy of SB3's PPO with the language model.

Rewards: ``sparse``; ``causal shaping``, paid by the environment at every step; ``ABC``, hindsight
credit that the agent relabels its episodes with. A callback or a replay buffer does that in
Stable-Baselines3, the bundled PPO does it itself, and in RLOO and GRPO the credit weights the
tokens.

Writes ``runs.parquet`` (a row per agent, reward, seed and 64 episodes), ``meta.json``, and from the
rows ``table.md``, ``statistics.md`` and ``curves.png``. Runs that are in ``runs.parquet`` are not
run again, so a stopped benchmark can be continued. ``--tables-only`` runs nothing, and makes the
tables and the figure anew.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from reports import agents as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "agents"


def train_all(names: list[str], seeds: int, jobs: int, scale: float, output: Path) -> None:
    from training import agents  # on use: tables need neither models nor torch

    run_missing(
        partial(agents.train, scale),
        [
            (name, reward, seed)
            for seed in range(seeds)
            for name in names
            for reward in agents.AGENTS[name].rewards
        ],
        report.KEYS,
        output / "runs.parquet",
        describe(*agents.PACKAGES),
        order="timesteps",
        jobs=jobs,
        shared={"scale": scale},
        untold={"scale": 1.0},
        aliases=report.ALIASES,
        report=lambda rows: "{:+.2f} → {:+.2f}".format(*report.ends_of(rows)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agent", action="append", choices=report.AGENTS, help="one of them; may be repeated"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the lengths of runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        names = arguments.agent or list(report.AGENTS)
        train_all(names, arguments.seeds, arguments.jobs, arguments.scale, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
