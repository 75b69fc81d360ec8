"""The runs of tuning.py."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium.vector import AutoresetMode, VectorEnv
from scipy.stats import qmc

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import AGENTS, Agent
from textgym.benchmark.fresh_completions import FreshCompletions
from textgym.benchmark.training import learn, prefixed
from textgym.credit import get_credit_assigner
from textgym.wrappers.vector import CreditAssignment

from .plan import ABLATED, METHODS, NUM_EPISODES, TASKS, UNTRAINED, VARIANTS, Method, Task

__all__ = ["PACKAGES", "at_kl_coef", "describe", "recombined", "settings", "train", "variants"]

PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy", "scikit-learn")

_LEARNING_RATE = (5e-5, 8e-4)
_KL_COEF = (0.03, 0.2)
_MINIBATCH_SIZE = (2, 4, 8)


def settings(method: str, number: int) -> list[str]:
    """The settings that are searched, as JSON.

    They are the points of one Latin hypercube, the same for all methods: learning rate and KL
    coefficient on logarithmic scales, minibatch size, and what the method alone can choose.

    Args:
        method: One of the plan's.
        number: How many.
    """
    points = qmc.LatinHypercube(d=5, rng=np.random.default_rng(0)).random(number)
    found = []
    for learning_rate, kl_coef, minibatch_size, *rest in points:
        setting = {
            "learning_rate": _on_log_scale(learning_rate, *_LEARNING_RATE),
            "kl_coef": _on_log_scale(kl_coef, *_KL_COEF),
            "minibatch_size": _choice(minibatch_size, _MINIBATCH_SIZE),
        }
        for (name, values), point in zip(METHODS[method].choices.items(), rest, strict=False):
            setting[name] = _choice(point, values)
        found.append(json.dumps(setting))
    return found


def recombined(best: Sequence[str], number: int) -> list[str]:
    """New settings, each choice taken from one of the best settings of a method.

    Learning rate and KL coefficient are then multiplied by a random factor, up to 3/2 in either
    direction. The draws are the same for all methods.

    Args:
        best: At least one, as JSON.
        number: How many.
    """
    rng = np.random.default_rng(1)
    parents = [json.loads(setting) for setting in best]
    found = []
    for _ in range(number):
        setting = {name: parents[rng.integers(len(parents))][name] for name in parents[0]}
        for name in ("learning_rate", "kl_coef"):
            setting[name] = float(f"{setting[name] * 1.5 ** rng.uniform(-1, 1):.2g}")
        found.append(json.dumps(setting))
    return found


def at_kl_coef(setting: str, kl_coef: float) -> str:
    """A setting, as JSON, with another coefficient of the KL penalty."""
    return json.dumps(json.loads(setting) | {"kl_coef": kl_coef})


def variants(setting: str) -> dict[str, str]:
    """The ablation's settings as JSON, by name.

    Args:
        setting: The one that is changed.
    """
    found = {}
    for name, changes in VARIANTS.items():
        changed = json.loads(setting) | changes
        changed["kl_coef"] *= changed.pop("kl_coef_factor", 1.0)
        found[name] = json.dumps(changed)
    return found


def train(
    task_name: str,
    measured: bool,
    dtype: str,
    method: str,
    setting: str,
    iterations: int,
    seed: int,
) -> pd.DataFrame:
    """One run, a row per iteration.

    Args:
        task_name: One of the plan's.
        measured: Whether fresh completions are measured after a quarter, a half and all
            of the iterations: columns that begin with ``fresh_``, empty in other rows.
        dtype: "float32" or "bfloat16", for reward model and policy.
        method: One of the plan's, or a variant of its ablated method; or "untrained" with 0
            iterations: a row of fresh completions.
        setting: Hyperparameters, and ``start`` and ``credit`` of the environment, as JSON.
        iterations: Length of the run. The learning rate falls as in a run of the task's length.
        seed: Of the agent.
    """
    task, autocast = TASKS[task_name], None if dtype == "float32" else dtype
    with tempfile.TemporaryDirectory() as log_dir:
        of_method = METHODS.get(method, METHODS[ABLATED])
        agent = _make_agent(task, of_method, json.loads(setting), autocast, seed, log_dir)
        fresh = FreshCompletions(_make_envs(task, 128, autocast, "sparse")) if measured else None
        if method == UNTRAINED:
            assert fresh is not None
            measures = fresh.measure(fresh.write(agent))
            return pd.DataFrame([{"iteration": 0} | prefixed(measures)]).round(4)
        assert agent.env is not None
        rows = learn(agent, agent.env, iterations, fresh)
        return rows.drop(columns=["seconds", "fresh_texts"], errors="ignore")


def _make_agent(
    task: Task,
    method: Method,
    setting: dict[str, Any],
    dtype: str | None,
    seed: int,
    log_dir: str,
) -> Agent:
    """An agent before its first iteration."""
    credit, start = setting.pop("credit", method.credit), setting.pop("start", "zero")
    shared = {
        "episodes_per_iteration": NUM_EPISODES,
        "kl_target": None,
        "anneal_iterations": task.iterations,
        "dtype": dtype,
        "seed": seed,
        "log_dir": log_dir,
    }
    envs = _make_envs(task, NUM_EPISODES, dtype, credit, start)
    return AGENTS[method.agent]("embedded", envs, **shared | method.fixed | setting)


def _make_envs(
    task: Task, num_envs: int, dtype: str | None, credit: str, start: str = "zero"
) -> VectorEnv:
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=num_envs,
        min_new_tokens=task.min_new_tokens,
        max_new_tokens=task.max_new_tokens,
        dtype=dtype,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    return CreditAssignment(envs, get_credit_assigner(credit, start=start))


def describe() -> dict[str, Any]:
    """Tasks, methods and ranges, for meta.json."""
    return {
        "episodes_per_iteration": NUM_EPISODES,
        "tasks": {name: dataclasses.asdict(task) for name, task in TASKS.items()},
        "methods": {name: dataclasses.asdict(method) for name, method in METHODS.items()},
        "learning_rate": _LEARNING_RATE,
        "kl_coef": _KL_COEF,
        "minibatch_size": _MINIBATCH_SIZE,
    }


def _on_log_scale(point: float, low: float, high: float) -> float:
    """A number between two others, to two digits."""
    return float(f"{low * (high / low) ** point:.2g}")


def _choice(point: float, values: Sequence[Any]) -> Any:
    return values[int(point * len(values))]
