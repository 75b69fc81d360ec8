"""A training that goes on from where it was, each time it is started; benchmarks/kills.py kills it.

python killable.py AGENT SEED FOLDER

What it is doing stands in ``FOLDER/phase``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import AGENTS, Agent, groups, ppo
from textgym.agents.checkpoint import CheckpointFolder
from textgym.memory import keep_freed_memory
from textgym.wrappers.vector import CreditAssignment

ITERATIONS = 8
NUM_ENVS = 8
LENGTHS = {"min_new_tokens": 4, "max_new_tokens": 8}
LEG = 64
"""Steps between two of Stable-Baselines3's zip files."""


def main(agent: str, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    note(folder, "start-up")
    (train_sb3 if agent == "sb3" else train)(agent, seed, folder)
    note(folder, "end")


def train(name: str, seed: int, folder: Path) -> None:
    """The bundled agents: the newest checkpoint of the run has everything."""
    envs = CreditAssignment(
        gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=NUM_ENVS,
            autoreset_mode=AutoresetMode.DISABLED,
            **LENGTHS,
        ),
        "abc",
    )
    for module in (ppo, groups):
        module.collect_episodes = noting(module.collect_episodes, folder, "rollout", "update")
    agent_class = AGENTS[name]
    agent_class.save = noting(agent_class.save, folder, "checkpoint", "update")
    agent: Agent
    if CheckpointFolder(folder).latest() is None:
        settings: dict[str, Any] = {"kl_target": 4.0, "episodes_per_iteration": 2 * NUM_ENVS}
        agent = agent_class("embedded", envs, seed=seed, log_dir=folder, save_every=1, **settings)
    else:
        agent = agent_class.load(folder, envs)
    if len(agent.history) < ITERATIONS:
        agent.learn(10**9, callback=lambda row: row["time/iteration"] < ITERATIONS)


def train_sb3(name: str, seed: int, folder: Path) -> None:
    """Stable-Baselines3: its zip files hold neither generators nor episodes, so legs are seeded."""
    from stable_baselines3 import PPO

    env = gym.make("ABC-RLHF-Features-v0", **LENGTHS)
    for leg in range(ITERATIONS):
        if file_of_leg(folder, leg).exists():
            continue
        if leg == 0:
            model = PPO("MlpPolicy", env, n_steps=LEG, gamma=1.0, seed=seed, device="cpu")
        else:
            model = PPO.load(file_of_leg(folder, leg - 1), env=env, device="cpu")
        model.set_random_seed(1000 * seed + leg)  # of the model, the environment and torch
        model.collect_rollouts = noting(model.collect_rollouts, folder, "rollout", "update")
        model.learn(LEG, reset_num_timesteps=False)
        del model.collect_rollouts  # the zip file would hold it
        note(folder, "checkpoint")
        unfinished = folder / "unfinished.zip"
        model.save(unfinished)
        os.replace(unfinished, file_of_leg(folder, leg))  # noqa: PTH105  whole, or not there


def file_of_leg(folder: Path, leg: int) -> Path:
    return folder / f"leg-{leg}.zip"


def note(folder: Path, phase: str) -> None:
    unfinished = folder / ".phase"
    unfinished.write_text(phase)
    unfinished.replace(folder / "phase")


def noting(
    function: Callable[..., Any], folder: Path, during: str, after: str
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        note(folder, during)
        result = function(*args, **kwargs)
        note(folder, after)
        return result

    return call


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
