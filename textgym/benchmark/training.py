"""One run of a benchmark: a method on a task under a seed."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import AGENTS, Agent, collect_episodes
from textgym.credit import get_credit_assigner
from textgym.errors import InvalidArgumentError, NumericalError
from textgym.samples import samples_of
from textgym.wrappers.vector import CreditAssignment

from .fresh_completions import FreshCompletions
from .gold import judge
from .methods import find_method, load_methods
from .plan import EPISODES, TASKS, Method, Task

__all__ = ["KEYS", "hyperparameters", "learn", "prefixed", "train"]

KEYS = ("task", "method", "iterations", "dtype", "seed")
"""What identifies a run."""
_COLUMNS = {
    "time/iteration": "iteration",
    "time/total_timesteps": "timesteps",
    "time/seconds": "seconds",
    "rollout/score_mean": "score",
    "rollout/kl_exact": "kl",
    "rollout/episode_length": "episode_length",
    "train/entropy": "entropy",
    "train/alarm": "alarm",
}
_OPTIONAL = ("train/entropy", "train/alarm")
"""Columns that an agent need not log."""
_FINITE = ("rollout/score_mean", "rollout/kl_exact")
"""Columns that every table needs."""
_NUM_SAMPLES = 4


def train(
    methods_file: Path | None,
    num_fresh: int,
    task_name: str,
    method_name: str,
    iterations: int,
    dtype: str,
    seed: int,
) -> pd.DataFrame:
    """One run, a row per iteration.

    Equal seeds give all methods the same prompts in the same order, the same first weights and the
    same random numbers for the tokens.

    Args:
        methods_file: Registers methods of the user's; None for none.
        num_fresh: Fresh completions, a multiple of 64; 0 for none. See :func:`learn`.
        task_name: One of :data:`textgym.benchmark.TASKS`.
        method_name: One of :data:`textgym.benchmark.METHODS`.
        iterations: Length of the run.
        dtype: "float32" or "bfloat16", for reward model and policy.
        seed: Of the agent.

    Returns:
        What :func:`learn` returns. The last row also has some of the run's own completions with
        their credit, as JSON in ``samples``.
    """
    load_methods(methods_file)
    task, method = TASKS[task_name], find_method(method_name)
    autocast = None if dtype == "float32" else dtype
    with tempfile.TemporaryDirectory() as log_dir:
        settings = {"dtype": autocast, "seed": seed, "log_dir": log_dir}
        envs = CreditAssignment(
            make_envs(task, method.num_envs, autocast),
            get_credit_assigner(method.credit, **method.credit_kwargs),
        )
        settings |= hyperparameters(method, task_name, iterations)
        agent = make_agent(task, method, envs, settings)
        fresh = None
        if num_fresh:
            apart = make_envs(task, min(num_fresh, 64), autocast)
            fresh = FreshCompletions(apart, num_fresh, task.film_reviews)
        rows = judge(learn(agent, envs, iterations, fresh))
        rows["samples"] = None
        rows.loc[rows.index[-1], "samples"] = _samples(agent, envs)
        return rows


def make_agent(task: Task, method: Method, envs: VectorEnv, settings: dict[str, Any]) -> Agent:
    """An agent before its first iteration."""
    if callable(method.agent):
        return method.agent(task, envs, settings)
    shared = {"episodes_per_iteration": EPISODES}
    return AGENTS[method.agent](task.policy, envs, **shared | settings)


def make_envs(task: Task, num_envs: int, dtype: str | None) -> VectorEnv:
    """The task's environment, its rows waiting when they have ended."""
    return gym.make_vec(
        task.env_id,
        num_envs=num_envs,
        dtype=dtype,
        autoreset_mode=AutoresetMode.DISABLED,
        **task.env_kwargs,
    )


def hyperparameters(method: Method, task_name: str, iterations: int) -> dict[str, Any]:
    """The agent's hyperparameters on a task, in a run of this length."""
    found = {**method.hyperparameters, **method.by_task.get(task_name, {})}
    if found.get("anneal_iterations") == "run":
        found["anneal_iterations"] = iterations
    return found


def learn(
    agent: Agent, envs: VectorEnv, iterations: int, fresh: FreshCompletions | None = None
) -> pd.DataFrame:
    """Train an agent; a row per iteration.

    Args:
        agent: Before its first iteration.
        envs: What it learns in.
        iterations: Length of the run, of :data:`textgym.benchmark.plan.EPISODES` episodes each.
        fresh: Writes and measures after a quarter, a half and all of the iterations: columns that
            begin with ``fresh_``, empty in other rows. Of film reviews ``fresh_texts`` is JSON:
            pairs of prompt and completion, so that other judges can read them later.

    Raises:
        InvalidArgumentError: If the agent's rows lack a column.
        NumericalError: If a score or a KL is NaN or infinite.
    """
    points = {math.ceil(iterations / parts) for parts in (4, 2, 1)} if fresh else set()
    found: dict[int, dict[str, Any]] = {}

    def callback(row: dict[str, float]) -> bool:
        _check_row(row)
        iteration = int(row["time/iteration"])
        if fresh is not None and iteration in points:
            written = fresh.write(agent)
            found[iteration] = prefixed(fresh.measure(written))
            if fresh.film_reviews:
                pairs = list(zip(written.prompts, written.completions, strict=True))
                found[iteration]["fresh_texts"] = json.dumps(pairs, ensure_ascii=False)
        return iteration < iterations

    base: Any = envs.unwrapped
    # Enough tokens for completions of any length; the callback ends the run.
    agent.learn(iterations * EPISODES * base.max_new_tokens, callback=callback)
    rows = pd.DataFrame(agent.history, columns=list(_COLUMNS)).rename(columns=_COLUMNS)
    rows["iteration"] = rows["iteration"].astype(int)
    return rows.join(pd.DataFrame.from_dict(found, orient="index"), on="iteration").round(4)


def prefixed(measures: dict[str, Any]) -> dict[str, Any]:
    """Measures of fresh completions under the names of their columns."""
    return {f"fresh_{name}": value for name, value in measures.items()}


def _check_row(row: Mapping[str, float]) -> None:
    missing = [name for name in _COLUMNS if name not in row and name not in _OPTIONAL]
    if missing:
        remedy = f"the agent's history and its callback need {', '.join(missing)} in every row"
        raise InvalidArgumentError("history", list(row), remedy)
    for name in _FINITE:
        if not math.isfinite(row[name]):
            raise NumericalError(
                name,
                row[name],
                f"in iteration {row['time/iteration']:.0f}",
                "no table can hold the run; lower the learning rate, or, if no episode ended in "
                "the iteration, take fewer rows (num_envs)",
            )


@torch.no_grad()
def _samples(agent: Agent, envs: VectorEnv) -> str:
    """Some completions at the end of a run, as JSON."""
    tokens, prompts = (torch.Generator().manual_seed(30_000 + i) for i in range(2))
    rollout = collect_episodes(agent.policy, envs, envs.num_envs, tokens, prompts)
    base: Any = envs.unwrapped
    samples = samples_of(rollout, base.tokenizer, range(min(_NUM_SAMPLES, envs.num_envs)))
    return json.dumps([dataclasses.asdict(sample) for sample in samples], ensure_ascii=False)
