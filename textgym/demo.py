"""The demo: sparse reward, Attention-Based Credit and attention shaping, side by side."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import textgym
from textgym.agents import PPO, collect_episodes
from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model
from textgym.plotting import plot_learning_curves, trailing_mean
from textgym.samples import Sample, samples_of
from textgym.wrappers.vector import CreditAssignment

__all__ = ["METHODS", "Method", "Summary", "run_demo", "summarize", "summary_table"]

NUM_ENVS = 16
"""Episodes per iteration, all of them in one batch."""
NUM_SAMPLES = 4
"""Prompts whose completions are shown."""
ENDS = 10
"""Iterations at the start and at the end of a run that the table averages over."""
SMOOTHING = 5
"""Iterations of the trailing mean that decides when sparse's best is reached."""

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Method:
    """One way to pay the policy.

    Attributes:
        name: Short name, in file names and results.
        label: Name for people.
        credit: Name of the credit assigner.
    """

    name: str
    label: str
    credit: str


METHODS = (
    Method("sparse", "sparse reward", "sparse"),
    Method("abc", "ABC", "attention"),
    Method("shaping", "attention shaping", "shaping"),
)


@dataclass(frozen=True)
class _Run:
    """A trained method with its samples, before and after, from the same prompts."""

    method: Method
    rows: list[dict[str, float]]
    before: list[Sample]
    after: list[Sample]


# --- Numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A row of the table.

    Attributes:
        label: Name of the method.
        first_score: Mean score over the first :data:`ENDS` iterations.
        last_score: Mean score over the last :data:`ENDS` iterations.
        last_kl: Mean KL to the reference policy over the last :data:`ENDS` iterations, in nats.
        iterations_to_best: The first iteration whose trailing mean score over :data:`SMOOTHING`
            iterations reaches the best one of the sparse reward; None if none does.
        seconds: Seconds of training.
    """

    label: str
    first_score: float
    last_score: float
    last_kl: float
    iterations_to_best: int | None
    seconds: float


def summarize(runs: Mapping[str, Rows]) -> list[Summary]:
    """Compute the table from the scalars of the iterations.

    Args:
        runs: Rows of scalars by label; the first run is the one to be reached.
    """
    scores = {label: [row["rollout/score_mean"] for row in rows] for label, rows in runs.items()}
    smooth = {label: trailing_mean(values, SMOOTHING) for label, values in scores.items()}
    goal = next(iter(smooth.values())).max()
    summaries = []
    for label, rows in runs.items():
        kl = [row["rollout/kl"] for row in rows]
        reached = (smooth[label] >= goal).nonzero()[0]
        window = min(SMOOTHING, len(rows))
        summaries.append(
            Summary(
                label=label,
                first_score=_mean(scores[label][:ENDS]),
                last_score=_mean(scores[label][-ENDS:]),
                last_kl=_mean(kl[-ENDS:]),
                iterations_to_best=int(reached[0]) + window if len(reached) else None,
                seconds=rows[-1]["time/seconds"],
            )
        )
    return summaries


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def summary_table(summaries: Sequence[Summary], iterations: int, seed: int) -> Table:
    """Lay the summaries out.

    Args:
        summaries: One per method.
        iterations: Length of the runs.
        seed: Their seed.
    """
    ends, smoothing = min(ENDS, iterations), min(SMOOTHING, iterations)
    table = Table(
        title=f"Measured in this run: one seed ({seed}), {iterations} iterations "
        f"of {NUM_ENVS} episodes",
        caption=f"first {ends}, last {ends}: means over the first and the last {ends} iterations. "
        "KL: to the reference policy, in nats per episode. Sparse's best: the highest mean score "
        f"over {smoothing} consecutive iterations of the sparse reward, reached by the first "
        f"iteration whose mean over the last {smoothing} is as high. One seed cannot tell which "
        "method is better.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for header in (
        f"score,\nfirst {ends}",
        f"score,\nlast {ends}",
        f"KL,\nlast {ends}",
        "iterations to\nsparse's best",
        "training\nseconds",
    ):
        table.add_column(header, justify="right")
    for row in summaries:
        reached = "not reached" if row.iterations_to_best is None else str(row.iterations_to_best)
        table.add_row(
            row.label,
            f"{row.first_score:+.2f}",
            f"{row.last_score:+.2f}",
            f"{row.last_kl:.2f}",
            reached,
            f"{row.seconds:.0f}",
        )
    return table


# --- Training -------------------------------------------------------------------------------------


class _Progress:
    """One bar per method with its live score and KL; plain lines where there is no terminal."""

    def __init__(self, console: Console, iterations: int) -> None:
        self.console, self.iterations = console, iterations
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("score {task.fields[score]}  KL {task.fields[kl]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = {
            method: self.bars.add_task(
                f"{method.label:<17}", start=False, total=iterations, score="    –", kl="   –"
            )
            for method in METHODS
        }

    def start(self, method: Method) -> None:
        """A method begins."""
        self.bars.start_task(self._tasks[method])

    def update(self, method: Method, row: Mapping[str, float]) -> None:
        """A method has finished an iteration."""
        done = int(row["time/iteration"])
        score, kl = f"{row['rollout/score_mean']:+.2f}", f"{row['rollout/kl']:.2f}"
        self.bars.update(self._tasks[method], completed=done, score=score, kl=kl)
        if not self.console.is_terminal and (done % 10 == 0 or done == self.iterations):
            place = f"iteration {done:>3}/{self.iterations}"
            self.console.print(f"{method.label:<17}  {place}  score {score}  KL {kl}")


def _make_env(method: Method, num_envs: int, env_arguments: Mapping[str, Any]) -> VectorEnv:
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=num_envs,
        autoreset_mode=AutoresetMode.DISABLED,
        **env_arguments,
    )
    return CreditAssignment(envs, method.credit)


def _sample(agent: PPO, envs: VectorEnv, seed: int) -> list[Sample]:
    """Completions of prompts that follow from the seed alone, whatever the method and the agent."""
    generator = torch.Generator().manual_seed(seed)
    rollout = collect_episodes(agent.policy, envs, envs.num_envs, generator)
    return samples_of(rollout, envs.unwrapped.tokenizer, range(envs.num_envs))  # type: ignore[attr-defined]


def _train(
    method: Method,
    policy: Any,
    env_arguments: Mapping[str, Any],
    iterations: int,
    hyperparameters: Mapping[str, Any],
    on_iteration: Callable[[dict[str, float]], None],
) -> tuple[_Run, PPO]:
    envs = _make_env(method, NUM_ENVS, env_arguments)
    sample_envs = _make_env(method, NUM_SAMPLES, env_arguments)
    agent = PPO(policy, envs, episodes_per_iteration=NUM_ENVS, **hyperparameters)
    seed = agent.config.seed
    before = _sample(agent, sample_envs, seed)

    def callback(row: dict[str, float]) -> bool:
        on_iteration(row)
        return row["time/iteration"] < iterations

    # Enough tokens for any completions; the callback ends the run.
    most_tokens = iterations * NUM_ENVS * envs.unwrapped.max_new_tokens  # type: ignore[attr-defined]
    agent.learn(most_tokens, callback=callback)
    return _Run(method, agent.history, before, _sample(agent, sample_envs, seed)), agent


# --- Output ---------------------------------------------------------------------------------------


def _print_samples(console: Console, runs: Sequence[_Run]) -> None:
    console.print(
        "\nCompletions before and after training: score, prompt, tokens coloured by their credit "
        "(green: positive; red and underlined: negative; full colour: the largest credit of that "
        "completion).\n"
    )
    abc = next(run for run in runs if run.method.name == "abc")
    for i, sample in enumerate(abc.before):
        lines = [("before, credit of ABC", sample)]
        lines += [(f"after {run.method.name}", run.after[i]) for run in runs]
        for label, shown in lines:
            console.print(Text().append(f"{label:<22}", "bold").append(shown.to_text()))
        console.print()


def _write_samples(path: Path, runs: Sequence[_Run]) -> None:
    lines = ["score  prompt | completion, the credit of each token in brackets behind it"]
    for run in runs:
        for stage, samples in (("before", run.before), ("after", run.after)):
            lines += ["", f"{run.method.label}, {stage} training"]
            lines += [sample.to_plain() for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe(
    iterations: int, policy: Any, env_arguments: Mapping[str, Any], agent: PPO
) -> dict[str, Any]:
    packages = ("textgym", "torch", "transformers", "gymnasium", "numpy")
    return {
        "iterations": iterations,
        "episodes_per_iteration": NUM_ENVS,
        "seed": agent.config.seed,
        "methods": [dataclasses.asdict(method) for method in METHODS],
        "policy": _name(policy),
        "environment": {name: _name(value) for name, value in env_arguments.items()},
        "hyperparameters": {
            name: value
            for name, value in dataclasses.asdict(agent.config).items()
            if name != "log_dir"
        },
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, "
        f"{torch.get_num_threads()} threads",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _resolve_dtype(dtype: str) -> str:
    """What "auto" stands for on this machine."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise InvalidArgumentError("dtype", dtype, 'must be "auto", "float32" or "bfloat16"')
    if dtype != "auto":
        return dtype
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older versions
    has: Mapping[str, Any] = get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def _name(value: Any) -> Any:
    """A value as it can stand in a JSON file: a loaded object by its class."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str | int | float | list | None) else type(value).__name__


def _fresh_folder(output: str | Path | None) -> Path:
    folder = Path("runs", time.strftime("demo-%Y%m%d-%H%M%S")) if output is None else Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError("output", str(folder), "exists already; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_demo(
    output: str | Path | None = None,
    iterations: int = 80,
    seed: int = 0,
    prompts: Any = "embedded",
    policy: Any = "embedded",
    tokenizer: Any = "embedded",
    reward_model: Any = "embedded",
    min_new_tokens: int = 8,
    max_new_tokens: int = 16,
    dtype: str = "auto",
    console: Console | None = None,
    **hyperparameters: Any,
) -> Path:
    """Train with sparse reward, credit and shaping from the same start, and compare.

    Files in the output folder: ``results.jsonl`` (a row of scalars per method and iteration),
    ``meta.json`` (seed, hyperparameters, versions), ``learning_curves.png``, ``samples.txt``, and
    a folder of logs per method.

    Args:
        output: The output folder, new or empty; None for a fresh one below ``runs/``.
        iterations: Iterations of 16 episodes, for each method.
        seed: Seed of all three runs.
        prompts: Prompts of the environment, as the next five arguments.
        policy: The policy at the start.
        tokenizer: Its tokenizer.
        reward_model: The reward model.
        min_new_tokens: Smallest budget of new tokens.
        max_new_tokens: Largest one.
        dtype: What policy and reward model compute in, "float32", "bfloat16" or "auto": bfloat16
            where the processor has instructions for it.
        console: Where to print; the standard output by default.
        **hyperparameters: Fields of :class:`textgym.agents.PPOConfig`.

    Returns:
        The output folder.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise InvalidArgumentError("iterations", iterations, "must be a whole number of at least 1")
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
    hyperparameters["dtype"] = None if dtype == "float32" else dtype
    load_language_model(policy)  # bad models and prompts must not leave a folder behind
    _make_env(METHODS[0], 1, env_arguments)
    folder = _fresh_folder(output)
    console.print(
        f"textgym {textgym.__version__}: PPO on ABC-RLHF-v0, {len(METHODS)} runs of {iterations} "
        f"iterations with {NUM_ENVS} episodes each, seed {seed}, {dtype}"
    )
    runs: list[_Run] = []
    progress = _Progress(console, iterations)
    with (folder / "results.jsonl").open("w", encoding="utf-8") as results, progress.bars:
        for method in METHODS:

            def on_iteration(row: dict[str, float], method: Method = method) -> None:
                results.write(json.dumps({"method": method.name, "seed": seed, **row}) + "\n")
                results.flush()
                progress.update(method, row)

            progress.start(method)
            settings = {**hyperparameters, "seed": seed, "log_dir": str(folder / method.name)}
            run, agent = _train(method, policy, env_arguments, iterations, settings, on_iteration)
            runs.append(run)
    meta = _describe(iterations, policy, env_arguments, agent)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    rows = {run.method.label: run.rows for run in runs}
    plot_learning_curves(
        rows,
        folder / "learning_curves.png",
        f"PPO on ABC-RLHF-v0, {NUM_ENVS} episodes per iteration, one seed ({seed})",
        SMOOTHING,
    )
    _write_samples(folder / "samples.txt", runs)
    _print_samples(console, runs)
    console.print(summary_table(summarize(rows), iterations, seed))
    console.print(f"\nLearning curves, samples and raw results: {folder}", soft_wrap=True)
    return folder
