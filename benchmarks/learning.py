"""Does dense reward help the bundled PPO? Several seeds, with controls, on one of two tasks.

python benchmarks/learning.py --seeds 3 --jobs 2
python benchmarks/learning.py --task planted --seeds 10 --jobs 2

Trains PPO once per condition and seed: on ABC-RLHF-v0 (``embedded``) with its default
hyperparameters, on ABC-RLHF-Planted-v0 (``planted``, the best score is 10) with those below. Writes

- ``runs.csv``: a row per condition, seed and iteration, with the commit that ran it;
- ``meta.json``: command, versions, machine, hyperparameters;
- ``table.md`` and ``learning_curves.png``, made from ``runs.csv`` alone.

Conditions that are in ``runs.csv`` already are not run again, so a stopped run can be continued;
``--tables-only`` makes table and figure anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import gymnasium as gym
import pandas as pd
import torch
from circumstances import commit, describe
from gymnasium.vector import AutoresetMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.demo import ENDS, NUM_ENVS, SMOOTHING, Summary, summarize
from textgym.wrappers.vector import CreditAssignment

RESULTS = Path(__file__).parent / "results"
CONDITIONS: dict[str, tuple[str, dict[str, float]]] = {
    "sparse": ("sparse", {}),
    "sparse, λ = 1": ("sparse", {"gae_lambda": 1.0}),
    "uniform credit": ("uniform", {}),
    "random credit": ("random", {}),
    "shuffled ABC": ("shuffled-attention", {}),
    "ABC": ("attention", {}),
    "causal attention shaping": ("shaping", {}),
}


@dataclass(frozen=True)
class Task:
    """What is trained on, and how."""

    env_id: str
    model: str
    num_envs: int
    iterations: int
    hyperparameters: dict[str, float | None]


TASKS = {
    "embedded": Task("ABC-RLHF-v0", "embedded", NUM_ENVS, 80, {}),
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
COLORS = ("#0072B2", "#56B4E9", "#CC79A7", "#999999", "#000000", "#E69F00", "#009E73")
COLUMNS = {
    "time/iteration": "iteration",
    "time/total_timesteps": "timesteps",
    "time/seconds": "seconds",
    "rollout/score_mean": "score",
    "rollout/kl": "kl",
    "rollout/episode_length": "episode_length",
}


def train(
    name: str, condition: str, seed: int, dtype: str | None = None
) -> tuple[pd.DataFrame, dict]:
    """One run: a row per iteration, and the hyperparameters.

    Args:
        name: The task.
        condition: One of :data:`CONDITIONS`.
        seed: Of the agent.
        dtype: "bfloat16" for the reward model, and for the policy under autocast.
    """
    torch.set_num_threads(1)  # of each of the processes that run side by side
    task, (credit, changes) = TASKS[name], CONDITIONS[condition]
    envs = gym.make_vec(
        task.env_id, num_envs=task.num_envs, dtype=dtype, autoreset_mode=AutoresetMode.DISABLED
    )
    settings = {
        "episodes_per_iteration": task.num_envs,
        "dtype": dtype,
        **task.hyperparameters,
        **changes,
    }
    with tempfile.TemporaryDirectory() as log_dir:
        agent = PPO(
            task.model, CreditAssignment(envs, credit), seed=seed, log_dir=log_dir, **settings
        )
        agent.learn(
            task.iterations * task.num_envs * envs.unwrapped.max_new_tokens,
            callback=lambda row: row["time/iteration"] < task.iterations,
        )
    rows = pd.DataFrame(agent.history)[list(COLUMNS)].rename(columns=COLUMNS).round(5)
    rows.insert(0, "commit", commit())
    rows.insert(0, "seed", seed)
    rows.insert(0, "condition", condition)
    return rows, dataclasses.asdict(agent.config)


def circumstances(hyperparameters: dict) -> dict:
    """Those of the runs, with what was trained."""
    return describe("textgym", "torch", "transformers", "gymnasium", "numpy") | {
        "hyperparameters": {
            k: v for k, v in hyperparameters.items() if k not in ("log_dir", "seed", "gae_lambda")
        },
        "conditions": {name: {"credit": c, **more} for name, (c, more) in CONDITIONS.items()},
    }


def make_table(runs: pd.DataFrame) -> str:
    """A Markdown table with every seed's number."""
    scalars = runs.rename(columns={short: name for name, short in COLUMNS.items()})
    summaries: dict[str, list[Summary]] = {condition: [] for condition in CONDITIONS}
    for _, of_seed in scalars.groupby("seed"):
        # In the order of CONDITIONS: the first one, sparse, is the one to be reached.
        rows = {c: of_seed[of_seed["condition"] == c].to_dict("records") for c in CONDITIONS}
        for summary in summarize({c: r for c, r in rows.items() if r}):
            summaries[summary.label].append(summary)
    lines = [
        f"Mean score of the first and the last {ENDS} iterations, KL to the reference policy over "
        f"the last {ENDS} (nats per episode), and the first iteration whose trailing mean score "
        f"over {SMOOTHING} iterations reaches the best of sparse reward under the same seed. "
        "Each cell lists the seeds in order; – means not reached.",
        "",
        "| condition | first | last | mean of last | KL | iterations to sparse's best |",
        "|---|---|---|---|---|---|",
    ]
    for condition, seeds in summaries.items():
        if not seeds:
            continue
        first = ", ".join(f"{seed.first_score:+.2f}" for seed in seeds)
        last = ", ".join(f"{seed.last_score:+.2f}" for seed in seeds)
        mean = sum(seed.last_score for seed in seeds) / len(seeds)
        kl = ", ".join(f"{seed.last_kl:.1f}" for seed in seeds)
        reached = ", ".join(str(seed.iterations_to_best or "–") for seed in seeds)
        lines.append(f"| {condition} | {first} | {last} | {mean:+.2f} | {kl} | {reached} |")
    return "\n".join(lines) + "\n"


def draw(runs: pd.DataFrame, task: Task, path: Path) -> None:
    """Every run as a thin line, the mean over the seeds as a strong one."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (column, label) in zip(
        figure.subplots(1, 2),
        {"score": "mean score", "kl": "KL to the reference policy (nats per episode)"}.items(),
        strict=True,
    ):
        for condition, color in zip(CONDITIONS, COLORS, strict=True):
            rows = runs[runs["condition"] == condition]
            if rows.empty:
                continue
            wide = rows.pivot(index="iteration", columns="seed", values=column)
            smooth = wide.rolling(SMOOTHING).mean()
            axes.plot(smooth.index, smooth, color=color, alpha=0.3, linewidth=0.9)
            axes.plot(
                smooth.index, smooth.mean(axis=1), color=color, linewidth=2.2, label=condition
            )
        axes.set_xlabel(f"iteration of {task.num_envs} episodes")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(
        f"Bundled PPO on {task.env_id}, {runs['seed'].nunique()} seeds "
        f"(thin: each seed, strong: their mean; trailing means over {SMOOTHING})"
    )
    figure.savefig(path, dpi=110)


def run_all(
    run: Callable[..., tuple[pd.DataFrame, dict]],
    todo: Iterable[tuple],
    names: list[str],
    output: Path,
    jobs: int,
) -> pd.DataFrame:
    """Run what ``runs.csv`` does not hold yet, several at a time; all rows, old and new.

    Args:
        run: From arguments to the rows of a run and its hyperparameters.
        todo: Arguments of all runs.
        names: Columns that hold the arguments, in their order.
        output: Folder of ``runs.csv`` and ``meta.json``, which are written after every run.
        jobs: Number of processes.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "runs.csv"
    runs = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=names)
    done = set(runs[names].itertuples(index=False, name=None))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *arguments) for arguments in todo if arguments not in done]
        for future in as_completed(futures):
            rows, hyperparameters = future.result()
            runs = rows if runs.empty else pd.concat([runs, rows], ignore_index=True)
            runs = runs.sort_values([*names, "iteration"])
            runs.to_csv(path, index=False)
            (output / "meta.json").write_text(
                json.dumps(circumstances(hyperparameters), indent=2, ensure_ascii=False) + "\n"
            )
            what = ", ".join(f"{name} {rows[name][0]}" for name in names)
            print(f"{what}: {rows['score'].tail(ENDS).mean():+.2f}", flush=True)
    return runs


def main(name: str, seeds: int, jobs: int, output: Path | None, tables_only: bool) -> None:
    output = output or RESULTS / ("learning" if name == "embedded" else f"learning_{name}")
    todo = [(c, s) for s in range(0 if tables_only else seeds) for c in CONDITIONS]
    runs = run_all(partial(train, name), todo, ["condition", "seed"], output, jobs)
    table = make_table(runs)
    (output / "table.md").write_text(table)
    draw(runs, TASKS[name], output / "learning_curves.png")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", dest="name", choices=TASKS, default="embedded")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--output", type=Path, help="folder; the task's below results/ by default")
    parser.add_argument("--tables-only", action="store_true")
    arguments = parser.parse_args()
    main(**vars(arguments))
