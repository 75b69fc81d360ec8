"""One run of an agent of Stable-Baselines3 with settings in the format of rl-baselines3-zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
import yaml
from gymnasium.vector import AutoresetMode
from stable_baselines3 import A2C, DQN, PPO

import textgym  # noqa: F401  (registers the environments)
from reports.zoo import draw_settings
from textgym.agents.sb3 import TextVecEnv

from .episodes import Progress
from .sb3_agents import Recorder

__all__ = ["SEARCH_SEED", "settings_of", "train", "try_out"]

ENV_ID = "ABC-RLHF-Features-Dense-v0"
SEARCH_SEED = 1000
"""Of the trials; no run that is reported has it."""
_ALGORITHMS = {"ppo": PPO, "a2c": A2C, "dqn": DQN}


def settings_of(path: Path, env_id: str = ENV_ID) -> tuple[int, int, str, dict[str, Any]]:
    """Read a file as the zoo does.

    Args:
        path: The YAML file of an algorithm.
        env_id: Whose settings to take.

    Returns:
        Number of environments, timesteps, policy, and the other arguments of the algorithm.
    """
    settings = dict(yaml.safe_load(path.read_text(encoding="utf-8"))[env_id])
    num_envs, timesteps = settings.pop("n_envs"), int(settings.pop("n_timesteps"))
    return num_envs, timesteps, settings.pop("policy"), settings


def train(folder: Path, algorithm: str, seed: int) -> pd.DataFrame:
    """Train with the settings of a file; a row per 64 episodes.

    Args:
        folder: Where the YAML files lie.
        algorithm: "ppo", "a2c" or "dqn".
        seed: That of the agent and of its environments.
    """
    num_envs, timesteps, policy, settings = settings_of(folder / f"{algorithm}.yml")
    return _train(algorithm, num_envs, timesteps, policy, settings, seed)


def try_out(folder: Path, timesteps: int, algorithm: str, trial: int) -> pd.DataFrame:
    """Train with the settings of a trial; a row per 64 episodes. All trials have one seed.

    Args:
        folder: Where the YAML files lie; what a trial does not change, they say.
        timesteps: Environment steps.
        algorithm: "ppo", "a2c" or "dqn".
        trial: See :func:`reports.zoo.draw_settings`.
    """
    num_envs, _, policy, settings = settings_of(folder / f"{algorithm}.yml")
    settings |= draw_settings(algorithm, trial)
    return _train(algorithm, num_envs, timesteps, policy, settings, seed=SEARCH_SEED)


def _train(
    algorithm: str, num_envs: int, timesteps: int, policy: str, settings: dict[str, Any], seed: int
) -> pd.DataFrame:
    envs = gym.make_vec(ENV_ID, num_envs, autoreset_mode=AutoresetMode.DISABLED, dtype="bfloat16")
    progress = Progress()
    make_agent: Any = _ALGORITHMS[algorithm]
    agent = make_agent(policy, TextVecEnv(envs), seed=seed, **settings)
    agent.learn(timesteps, callback=Recorder(progress))
    return progress.rows().drop(columns="kl")
