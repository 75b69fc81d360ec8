r"""Does CleanRL's ppo.py learn on an id of textgym, and what in the environment decides it?

curl -O https://raw.githubusercontent.com/vwxyzjn/cleanrl/fe8d8a0/cleanrl/ppo.py
python benchmarks/cleanrl.py --script ppo.py --seeds 3

The script runs as it is, with its own defaults but for the flags of ``reports/cleanrl.py``. Its
file has to have the SHA-256 below, so that the results name what ran. Two things are done to save
time: the script gets the batched environment where it makes a SyncVectorEnv, which takes the same
steps, and models compute in bfloat16. It prints no returns under Gymnasium 1.x, so the environment
notes the scores.

Writes ``runs.csv`` (a row per setting, seed and 64 episodes), ``meta.json``, ``table.md`` and
``curves.png``. What is stored is not run again. ``--tables-only`` runs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from pathlib import Path

from reports import cleanrl as report
from textgym.benchmark.circumstances import describe
from textgym.benchmark.runner import run_missing

RESULTS = Path(__file__).parent / "results" / "cleanrl"
PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "tyro", "tensorboard")
TIMESTEPS = 60_000
SHA256 = "d8dfbb7ac0b21e747b77d6e6673e566db4d6cdacc83bcebcd19cf87ad0e459ae"
"""Of cleanrl/ppo.py at CleanRL's commit fe8d8a0, April 2026."""


def sha256_of(script: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(script.read_bytes()).hexdigest()


def checked(script: Path, sha256: str) -> Path:
    """The path of the script, if it is the one that is asked for."""
    found = sha256_of(script)
    if found != sha256:
        raise SystemExit(f"{script} has the SHA-256 {found}; to run it, pass it as --sha256")
    return script.resolve()


def run(
    script: Path, only: list[str] | None, seeds: int, steps: int, jobs: int, output: Path
) -> None:
    from training.cleanrl import train  # on use: tables need neither models nor torch

    run_missing(
        partial(train, script, steps),
        [(setting, seed) for seed in range(1, seeds + 1) for setting in only or report.SETTINGS],
        report.KEYS,
        output / "runs.csv",
        {**describe(*PACKAGES), "script": "cleanrl/ppo.py"},
        order="timesteps",
        jobs=jobs,
        shared={"sha256": sha256_of(script), "timesteps": steps},
        untold={"timesteps": TIMESTEPS},
        report=report.describe,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", type=Path, help="CleanRL's ppo.py, downloaded")
    parser.add_argument("--sha256", default=SHA256, help="of the script")
    parser.add_argument("--setting", action="append", help="one of them; may be repeated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if not arguments.tables_only:
        if arguments.script is None:
            parser.error("--script is needed: CleanRL has no package that contains ppo.py")
        run(
            checked(arguments.script, arguments.sha256),
            arguments.setting,
            arguments.seeds,
            arguments.timesteps,
            arguments.jobs,
            arguments.output,
        )
    print(report.write(arguments.output))


if __name__ == "__main__":
    main()
