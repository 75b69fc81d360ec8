"""A run of ``textgym train`` in one or more processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from textgym.demo.protocol import METHODS, NUM_ENVS

__all__ = ["train"]


def train(tokens: int, num_processes: int, num_threads: int, seed: int) -> pd.DataFrame:
    """A row per iteration of PPO with the prefix score, on the task of the demo.

    Args:
        tokens: Of the run.
        num_processes: Processes that train together.
        num_threads: Of each process.
        seed: Of the agent.
    """
    (method,) = (method for method in METHODS if method.name == "prefix-score")
    launcher = [sys.executable, "-m"]
    if num_processes > 1:
        nproc = f"--nproc-per-node={num_processes}"
        # Without the two dashes, torchrun would take --start for an option of its own.
        launcher += ["torch.distributed.run", "--standalone", nproc, "-m", "--"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        flags = {
            "output": output,
            "seed": seed,
            "total-timesteps": tokens,
            "num-envs": NUM_ENVS,
            "episodes-per-iteration": NUM_ENVS,
            "min-new-tokens": 40,
            "max-new-tokens": 60,
            "credit": method.credit,
            "start": method.start,
            **{name.replace("_", "-"): value for name, value in method.hyperparameters.items()},
        }
        command = [*launcher, "textgym", "train"]
        command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        subprocess.run(
            command,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(num_threads)},
            stdout=subprocess.DEVNULL,
        )
        lines = (output / "metrics.jsonl").read_text().splitlines()
    history = pd.DataFrame([json.loads(line) for line in lines])
    return pd.DataFrame(
        {
            "iteration": history["time/iteration"].astype(int),
            "score": history["rollout/score_mean"].round(4),
            "kl": history["rollout/kl_exact"].round(4),
            "seconds": history["time/seconds"].round(3),
        }
    )
