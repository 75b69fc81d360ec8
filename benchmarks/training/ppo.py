"""The bundled PPO under several kinds of reward, on one of two tasks."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import pandas as pd
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO, PPOConfig
from textgym.wrappers.vector import CreditAssignment

__all__ = ["CONDITIONS", "PACKAGES", "TASKS", "Task", "describe_runs", "train", "train_in"]

PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy")
CONDITIONS: dict[str, tuple[str, dict[str, float]]] = {
    "sparse": ("sparse", {}),
    "sparse, λ = 1": ("sparse", {"gae_lambda": 1.0}),
    "uniform credit": ("uniform", {}),
    "random credit": ("random", {}),
    "shuffled ABC": ("shuffled-abc", {}),
    "ABC": ("abc", {}),
    "causal shaping": ("shaping", {}),
}
"""By name, the credit assigner and the hyperparameters that differ from the task's."""


@dataclass(frozen=True)
class Task:
    """What is trained on, and how."""

    env_id: str
    model: str
    num_envs: int
    iterations: int
    hyperparameters: dict[str, float | None]


TASKS = {
    "embedded": Task(
        "ABC-RLHF-v0", "embedded", 16, 80, {"learning_rate": 5e-5, "kl_coef": 0.1, "kl_target": 6.0}
    ),
    "planted": Task(
        "ABC-RLHF-Planted-v0",
        "planted",
        64,
        100,
        {
            "minibatch_size": 32,
            "learning_rate": 1e-3,
            "ent_coef": 0.02,
            "kl_coef": 0.0,
            "kl_target": None,
            "vf_clip_coef": None,
        },
    ),
}
_COLUMNS = {
    "time/iteration": "iteration",
    "time/total_timesteps": "timesteps",
    "time/seconds": "seconds",
    "rollout/score_mean": "score",
    "rollout/kl": "kl",
    "rollout/episode_length": "episode_length",
}


def train(
    name: str,
    iterations: int | None,
    condition: str,
    seed: int,
    dtype: str | None = None,
) -> pd.DataFrame:
    """One run, a row per iteration.

    Args:
        name: One of :data:`TASKS`.
        iterations: Length of the run; None: the task's.
        condition: One of :data:`CONDITIONS`.
        seed: Of the agent.
        dtype: "bfloat16" for the reward model, and for the policy under autocast.
    """
    task, (credit, changes) = TASKS[name], CONDITIONS[condition]
    iterations = iterations or task.iterations
    envs = gym.make_vec(
        task.env_id, num_envs=task.num_envs, dtype=dtype, autoreset_mode=AutoresetMode.DISABLED
    )
    with tempfile.TemporaryDirectory() as log_dir:
        agent = PPO(
            task.model,
            CreditAssignment(envs, credit),
            seed=seed,
            log_dir=log_dir,
            **_hyperparameters(task, dtype) | changes,
        )
        agent.learn(
            iterations * task.num_envs * envs.unwrapped.max_new_tokens,  # type: ignore[attr-defined]
            callback=lambda row: row["time/iteration"] < iterations,
        )
    return pd.DataFrame(agent.history)[list(_COLUMNS)].rename(columns=_COLUMNS).round(5)


def train_in(condition: str, dtype: str, seed: int, iterations: int | None = None) -> pd.DataFrame:
    """A run on the embedded task in "float32" or "bfloat16"; see :func:`train`."""
    return train("embedded", iterations, condition, seed, None if dtype == "float32" else dtype)


def describe_runs(name: str) -> dict[str, Any]:
    """Hyperparameters that all runs of a task share, and what each condition changes."""
    config = dataclasses.asdict(PPOConfig(**_hyperparameters(TASKS[name], None)))
    shared = {k: v for k, v in config.items() if k not in ("log_dir", "seed", "gae_lambda")}
    conditions = {name: {"credit": c, **changes} for name, (c, changes) in CONDITIONS.items()}
    return {"hyperparameters": shared, "conditions": conditions}


def _hyperparameters(task: Task, dtype: str | None) -> dict[str, Any]:
    return {"episodes_per_iteration": task.num_envs, "dtype": dtype, **task.hyperparameters}
