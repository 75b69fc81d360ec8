"""The demo's runs: the same training three times, paid in three ways."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console

import textgym
from textgym.agents import PPO, PPOConfig, collect_episodes
from textgym.checks import check_whole_number
from textgym.credit import get_credit_assigner
from textgym.demo.output import MethodProgress, Run, print_samples, write_samples
from textgym.demo.protocol import METHODS, NUM_ENVS, NUM_SAMPLES, SMOOTHING, Method
from textgym.demo.summary import summarize, summary_table
from textgym.errors import InvalidArgumentError
from textgym.memory import keep_freed_memory
from textgym.models import load_language_model, load_tokenizer
from textgym.models.loading import is_bfloat16_faster
from textgym.plotting import plot_learning_curves
from textgym.samples import Sample, samples_of
from textgym.wrappers.vector import CreditAssignment

__all__ = ["run_demo"]


def run_demo(
    output: str | Path | None = None,
    iterations: int = 40,
    seed: int = 0,
    prompts: Any = "embedded",
    policy: Any = "embedded",
    tokenizer: Any = "embedded",
    reward_model: Any = "embedded",
    min_new_tokens: int = 40,
    max_new_tokens: int = 60,
    dtype: str = "auto",
    console: Console | None = None,
    **hyperparameters: Any,
) -> Path:
    """Train with sparse reward, ABC and prefix-score shaping from the same start, and compare.

    Files in the output folder: ``results.jsonl`` (a row of scalars per method and iteration),
    ``meta.json`` (seed, hyperparameters, versions), ``learning_curves.png``, ``samples.txt``, and
    a folder of logs per method.

    The process keeps the memory that it frees from then on
    (:func:`textgym.memory.keep_freed_memory`).

    Args:
        output: The output folder, new or empty; None for a fresh one below ``runs/``.
        iterations: Iterations of 16 episodes, for each method.
        seed: Seed of all three runs.
        prompts: Prompts of the environment; see :class:`textgym.envs.TextGenerationEnv`.
        policy: The policy at the start: ``"embedded"``, a folder, a hub id or a loaded model.
        tokenizer: Its tokenizer: ``"embedded"``, a folder, a hub id or a loaded tokenizer.
        reward_model: The reward model: ``"embedded"``, a folder, a hub id or a loaded model.
        min_new_tokens: Smallest budget of new tokens.
        max_new_tokens: Largest budget of new tokens.
        dtype: What policy and reward model compute in: "float32", "bfloat16" or "auto", which is
            bfloat16 if it is faster on this processor.
        console: Where to print; standard output by default.
        **hyperparameters: Fields of :class:`textgym.agents.PPOConfig` for all runs, instead of
            each method's own; not ``episodes_per_iteration`` and ``log_dir``.

    Returns:
        The output folder.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """
    iterations = check_whole_number("iterations", iterations, 1)
    for name in ("episodes_per_iteration", "log_dir"):
        if name in hyperparameters:
            raise InvalidArgumentError(
                name, hyperparameters[name], "the demo sets it; leave it out"
            )
    console = console or Console(highlight=False)
    dtype = _resolve_dtype(dtype)
    env_arguments = {
        "tokenizer": tokenizer,
        "reward_model": reward_model,
        "prompts": prompts,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
    }
    hyperparameters |= {
        "seed": seed,
        "episodes_per_iteration": NUM_ENVS,
        "dtype": None if dtype == "float32" else dtype,
    }
    # Bad arguments must not leave a folder behind.
    PPOConfig.from_keywords(**hyperparameters)
    load_language_model(policy)
    _make_env(METHODS[0], 1, env_arguments)
    folder = _fresh_folder(output)
    keep_freed_memory()
    console.print(
        f"textgym {textgym.__version__}: PPO on ABC-RLHF-v0, {len(METHODS)} runs of {iterations} "
        f"iterations with {NUM_ENVS} episodes each, seed {seed}, {dtype}"
    )
    runs: list[Run] = []
    configs: dict[str, PPOConfig] = {}
    progress = MethodProgress(console, iterations)
    with (folder / "results.jsonl").open("w", encoding="utf-8") as results, progress.bars:
        for method in METHODS:

            def on_iteration(row: dict[str, float], method: Method = method) -> None:
                results.write(json.dumps({"method": method.name, "seed": seed, **row}) + "\n")
                results.flush()
                progress.update(method, row)

            progress.start(method)
            settings = {
                **method.hyperparameters,
                "anneal_iterations": iterations,
                **hyperparameters,
                "log_dir": str(folder / method.name),
            }
            run, config = _train(method, policy, env_arguments, iterations, settings, on_iteration)
            runs.append(run)
            configs[method.name] = config
    meta = _describe(iterations, seed, policy, env_arguments, configs)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    rows = {run.method.label: run.rows for run in runs}
    plot_learning_curves(
        rows,
        folder / "learning_curves.png",
        f"PPO on ABC-RLHF-v0, {NUM_ENVS} episodes per iteration, one seed ({seed})",
        SMOOTHING,
    )
    write_samples(folder / "samples.txt", runs)
    print_samples(console, runs)
    console.print(summary_table(summarize(rows), iterations, seed))
    console.print(
        f"\nLearning curves, samples and raw results: {folder}", soft_wrap=True, markup=False
    )
    return folder


def _train(
    method: Method,
    policy: Any,
    env_arguments: Mapping[str, Any],
    iterations: int,
    hyperparameters: Mapping[str, Any],
    on_iteration: Callable[[dict[str, float]], None],
) -> tuple[Run, PPOConfig]:
    envs = _make_env(method, NUM_ENVS, env_arguments)
    sample_envs = _make_env(method, NUM_SAMPLES, env_arguments)
    agent = PPO(policy, envs, **hyperparameters)

    def sample() -> list[Sample]:
        # The prompts follow from the seed alone, whatever the method and its progress.
        generator = torch.Generator().manual_seed(agent.config.seed)
        rollout = collect_episodes(agent.policy, sample_envs, NUM_SAMPLES, generator)
        tokenizer = load_tokenizer(env_arguments["tokenizer"])
        return samples_of(rollout, tokenizer, range(NUM_SAMPLES))

    def callback(row: dict[str, float]) -> bool:
        on_iteration(row)
        return row["time/iteration"] < iterations

    before = sample()
    # Enough tokens for completions of any length; the callback ends the run.
    agent.learn(iterations * NUM_ENVS * env_arguments["max_new_tokens"], callback=callback)
    return Run(method, agent.history, before, sample()), agent.config


def _make_env(method: Method, num_envs: int, env_arguments: Mapping[str, Any]) -> VectorEnv:
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=num_envs,
        autoreset_mode=AutoresetMode.DISABLED,
        **env_arguments,
    )
    return CreditAssignment(envs, get_credit_assigner(method.credit, start=method.start))


def _resolve_dtype(dtype: str) -> str:
    """What "auto" means on this machine."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InvalidArgumentError("dtype", dtype, 'must be "auto", "float32" or "bfloat16"')
    if dtype != "auto":
        return dtype
    return "bfloat16" if is_bfloat16_faster() else "float32"


def _fresh_folder(output: str | Path | None) -> Path:
    folder = Path("runs", time.strftime("demo-%Y%m%d-%H%M%S")) if output is None else Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError("output", str(folder), "exists already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _describe(
    iterations: int,
    seed: int,
    policy: Any,
    env_arguments: Mapping[str, Any],
    configs: Mapping[str, PPOConfig],
) -> dict[str, Any]:
    """Everything that meta.json says about the runs."""
    packages = ("textgym", "torch", "transformers", "gymnasium", "numpy")
    return {
        "iterations": iterations,
        "episodes_per_iteration": NUM_ENVS,
        "seed": seed,
        "methods": [dataclasses.asdict(method) for method in METHODS],
        "policy": _name(policy),
        "environment": {name: _name(value) for name, value in env_arguments.items()},
        "hyperparameters": {
            method: {n: value for n, value in dataclasses.asdict(c).items() if n != "log_dir"}
            for method, c in configs.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, "
        f"{torch.get_num_threads()} threads",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _name(value: Any) -> Any:
    """A value as JSON can hold it; a loaded object becomes the name of its class."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str | int | float | list | None) else type(value).__name__
