"""Kill a training at random moments, and compare what comes out with an unbroken one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

__all__ = ["kill_and_compare"]

PROGRAM = Path(__file__).with_name("killable.py")


def kill_and_compare(num_kills: int, agent: str, seed: int) -> pd.DataFrame:
    """A row per kill: what the training was doing, and whether the run ended as the unbroken one.

    The moments are uniform over the seconds that the unbroken run took between its start-up and its
    end, so many kills hit a process soon after it went on, or the checkpoint that it is writing.

    Args:
        num_kills: Number of kills.
        agent: "ppo", "rloo", "grpo" or "sb3".
        seed: Of the training, and of the moments.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        started = time.monotonic()
        _run(agent, seed, whole)
        seconds = time.monotonic() - started
        phases = []
        while len(phases) < num_kills:
            # A share of the whole time that leaves work for the kills to come.
            after = moments.uniform(0, seconds / 3)
            phase = _run(agent, seed, broken, kill_after=after)
            if phase is None:  # It reached the end before. So that is where the kills end.
                break
            phases.append(phase)
        _run(agent, seed, broken)
        identical = _state(agent, whole) == _state(agent, broken)
    return pd.DataFrame(
        {"kill": range(1, len(phases) + 1), "phase": phases, "identical": identical}
    )


def _run(agent: str, seed: int, folder: Path, kill_after: float | None = None) -> str | None:
    """Start the program; kill it, and return what it was doing, or None if it came to its end."""
    (folder / "phase").unlink(missing_ok=True)
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), agent, str(seed), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    ) as process:
        try:
            if kill_after is not None:
                while not (folder / "phase").exists() and process.poll() is None:
                    time.sleep(0.01)
            _, error = process.communicate(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            phase = (folder / "phase").read_text()
            return None if phase == "end" else phase
    if process.returncode:
        raise RuntimeError(error.decode())
    return None


def _state(agent: str, folder: Path) -> Any:
    """Everything that a run leaves but its times, in a form that compares bit for bit."""
    if agent == "sb3":
        from stable_baselines3 import PPO

        newest = max(folder.glob("leg-*.zip"), key=lambda file: int(file.stem.split("-")[1]))
        model = PPO.load(newest, device="cpu")
        return newest.name, model.num_timesteps, _bytes_of(model.get_parameters())
    from textgym.agents.checkpoint import read_checkpoint

    contents = read_checkpoint(folder, agent.upper())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == contents.pop("history")
    del contents["seconds"], contents["hyperparameters"]["log_dir"]
    return _bytes_of(contents), [{k: v for k, v in r.items() if k != "time/seconds"} for r in rows]


def _bytes_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bytes_of(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_bytes_of(one) for one in value]
    return value
