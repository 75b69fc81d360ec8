"""The runs of tuning.py."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from gymnasium.vector import VectorEnv
from scipy.stats import qmc

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import AGENTS, Agent
from textgym.benchmark import Method as SuiteMethod
from textgym.benchmark.fresh_completions import FreshCompletions
from textgym.benchmark.training import learn, make_envs, prefixed
from textgym.credit import get_credit_assigner
from textgym.wrappers.vector import CreditAssignment

from .plan import ABLATED, NUM_EPISODES, TASKS, UNTRAINED, VARIANTS, Method, Task

__all__ = ["PACKAGES", "at_kl_coef", "describe", "recombined", "settings", "train", "variants"]

PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy", "scikit-learn")

_KL_COEF = (0.03, 0.2)


def settings(task: str, method: str, number: int) -> list[str]:
    """The settings that are searched, as JSON.

    They are the points of one Latin hypercube, the same for all methods: learning rate and KL
    coefficient on logarithmic scales, minibatch size, and what the method alone can choose.

    Args:
        task: One of the plan's.
        method: One of the plan's.
        number: How many.
    """
    plan = TASKS[task].methods[method]
    points = qmc.LatinHypercube(d=5, rng=np.random.default_rng(0)).random(number)
    found = []
    for learning_rate, kl_coef, minibatch, *rest in points:
        setting = {
            "learning_rate": _on_log_scale(learning_rate, *TASKS[task].learning_rate),
            "kl_coef": _on_log_scale(kl_coef, *_KL_COEF),
        }
        if plan.minibatches is not None:
            name, values = plan.minibatches
            setting[name] = _choice(minibatch, values)
        for (name, values), point in zip(plan.choices.items(), rest, strict=False):
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
    plan = task.methods.get(method, task.methods[ABLATED])
    chosen = plan.fixed | json.loads(setting)
    credit, start = chosen.pop("credit", plan.credit), chosen.pop("start", "zero")
    with tempfile.TemporaryDirectory() as log_dir:
        envs = _make_envs(task, plan.num_envs, autocast, credit, start)
        chosen |= {"dtype": autocast, "seed": seed, "log_dir": log_dir}
        agent = _make_agent(task, plan, envs, chosen)
        fresh = None
        if measured:
            apart = _make_envs(task, 128, autocast, "sparse")
            fresh = FreshCompletions(apart, film_reviews=task.of_suites.film_reviews)
        if method == UNTRAINED:
            assert fresh is not None
            measures = fresh.measure(fresh.write(agent))
            return pd.DataFrame([{"iteration": 0} | prefixed(measures)]).round(4)
        rows = learn(agent, envs, iterations, fresh)
        return rows.drop(columns=["seconds", "fresh_texts"], errors="ignore")


def _make_agent(task: Task, plan: Method, envs: VectorEnv, settings: dict[str, Any]) -> Agent:
    """An agent before its first iteration."""
    if callable(plan.agent):
        return plan.agent(task.of_suites, envs, settings)
    shared = {
        "episodes_per_iteration": NUM_EPISODES,
        "kl_target": None,
        "anneal_iterations": task.iterations,
    }
    return AGENTS[plan.agent](task.of_suites.policy, envs, **shared | settings)


def _make_envs(
    task: Task, num_envs: int, dtype: str | None, credit: str, start: str = "zero"
) -> VectorEnv:
    envs = make_envs(task.of_suites, num_envs, dtype)
    return CreditAssignment(envs, get_credit_assigner(credit, start=start))


def describe() -> dict[str, Any]:
    """Tasks, methods and ranges, for meta.json."""
    return {
        "episodes_per_iteration": NUM_EPISODES,
        "tasks": {name: _plain(task) for name, task in TASKS.items()},
        "kl_coef": _KL_COEF,
    }


def _plain(task: Task) -> dict[str, Any]:
    """A task and its methods as JSON values."""
    methods = {
        name: dataclasses.replace(method, agent=SuiteMethod(agent=method.agent).agent_name)
        for name, method in task.methods.items()
    }
    return dataclasses.asdict(dataclasses.replace(task, methods=methods))


def _on_log_scale(point: float, low: float, high: float) -> float:
    """A number between two others, to two digits."""
    return float(f"{low * (high / low) ** point:.2g}")


def _choice(point: float, values: Sequence[Any]) -> Any:
    return values[int(point * len(values))]
