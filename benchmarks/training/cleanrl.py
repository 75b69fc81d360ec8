"""One run of CleanRL's ppo.py, from its own file, with the scores of its episodes noted."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import pandas as pd
from gymnasium.vector import VectorEnv, VectorWrapper

import textgym  # noqa: F401  (registers the environments)
from reports.cleanrl import FLAGS, SETTINGS

from .episodes import Progress

__all__ = ["train"]

ENV_ID = "ABC-RLHF-Features-v0"


class _Recorder(VectorWrapper):
    """Notes the scores of the episodes that end."""

    def __init__(self, envs: VectorEnv, progress: Progress) -> None:
        super().__init__(envs)
        self._progress = progress
        self._timesteps = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step in every row."""
        *rest, terminated, truncated, infos = self.env.step(actions)
        self._timesteps += self.num_envs
        if terminated.any():
            self._progress.add(self._timesteps, infos["score"][terminated].tolist())
        return *rest, terminated, truncated, infos


def train(script: Path, timesteps: int, setting: str, seed: int) -> pd.DataFrame:
    """A run of the script; a row per 64 episodes.

    Args:
        script: CleanRL's ppo.py.
        timesteps: Environment steps, of which one in seventeen only resets a row.
        setting: One of :data:`reports.cleanrl.SETTINGS`.
        seed: The script's.
    """
    arguments, flags = SETTINGS[setting]
    progress = Progress()

    def batched(thunks: Sequence[Callable[[], gym.Env]]) -> VectorEnv:
        envs = gym.make_vec(ENV_ID, len(thunks), dtype="bfloat16", **arguments)
        return _Recorder(envs, progress)

    own = {"--seed": seed, "--env-id": f"textgym:{ENV_ID}", "--total-timesteps": timesteps}
    argv = [str(script), *(str(part) for pair in own.items() for part in pair), *FLAGS, *flags]
    with (
        tempfile.TemporaryDirectory() as folder,
        chdir(folder),  # The script writes its logs to runs/.
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        patch.object(sys, "argv", argv),
        patch.object(gym.vector, "SyncVectorEnv", batched),
    ):
        runpy.run_path(str(script), run_name="__main__")
    return progress.rows().drop(columns="kl")
