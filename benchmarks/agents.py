"""Which agents learn to write, under which reward? Five seeds each, beside an agent at random.

python benchmarks/agents.py --seeds 5 --jobs 2

Two forms of one task, 16 tokens per completion:

- agents for small control problems see features of the embedded language model and choose among its
  16 likeliest tokens (ABC-RLHF-Features-v0);
- language models see the tokens and choose among all of them (ABC-RLHF-v0).

Each run has one thread; its time is processor time. Models compute in bfloat16, apart from the
policy of SB3's PPO with the language model.

Rewards: ``sparse``; ``shaping``, causal, paid by the environment at every step; ``credit``,
hindsight (ABC), relabelled by the agent: by a callback or a replay buffer in Stable-Baselines3, by
the bundled PPO itself, and as weights of the tokens in RLOO and GRPO.

Writes ``runs.parquet`` (a row per agent, reward, seed and 64 episodes), ``meta.json``, and from
these ``table.md`` and ``curves.png``. What is in ``runs.parquet`` is not run again, so a stopped
run can be continued; ``--tables-only`` makes table and figure anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from circumstances import commit, describe
from gymnasium.vector import AutoresetMode, VectorEnv
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sb3_contrib import MaskablePPO
from scipy.stats import t as student
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecNormalize

import textgym  # noqa: F401  (registers the environments)
from textgym import agents
from textgym.agents.sb3 import (
    HindsightCreditCallback,
    HindsightReplayBuffer,
    LanguageModelPolicy,
    TextVecEnv,
)
from textgym.models import load_language_model
from textgym.wrappers import vector

COMMIT = commit()  # when the code was read, not when a run ends
RESULTS = Path(__file__).parent / "results" / "agents"
NUM_TOKENS = 16
CHUNK = 64  # episodes per row
START, END = 128, 256  # episodes at either end of a run that the table compares
REWARDS = ("sparse", "shaping", "credit")


# --- What happens in a run ------------------------------------------------------------------------


@dataclass
class Progress:
    """Scores of the episodes in the order in which they ended."""

    scores: list[float] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    kl: float = float("nan")
    started: float = field(default_factory=time.process_time)

    def add(self, timesteps: int, scores: list[float]) -> None:
        """Note episodes that ended after so many timesteps."""
        self.scores += scores
        self.timesteps += [timesteps] * len(scores)
        self.seconds += [time.process_time() - self.started] * len(scores)

    def rows(self) -> pd.DataFrame:
        """A row per chunk of episodes; the KL, known at the end alone, in the last one."""
        frame = pd.DataFrame(
            {"timesteps": self.timesteps, "seconds": self.seconds, "score": self.scores}
        )
        chunk = np.arange(len(frame)) // CHUNK
        rows = frame.groupby(chunk).agg({"timesteps": "max", "seconds": "max", "score": "mean"})
        rows["episodes"] = frame.groupby(chunk).size()
        rows["kl"] = np.nan
        rows.loc[rows.index[-1], "kl"] = self.kl
        return rows


class Recorder(BaseCallback):
    """Takes the scores out of the infos of Stable-Baselines3."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def _on_step(self) -> bool:
        scores = [info["score"] for info in self.locals["infos"] if "score" in info]
        self.progress.add(self.num_timesteps, scores)
        return True


def make_envs(env_id: str, num_envs: int, reward: str) -> VectorEnv:
    arguments = {"min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS, "dtype": "bfloat16"}
    envs = gym.make_vec(env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    if reward == "shaping":
        return vector.AttentionShaping(envs)
    return vector.CreditAssignment(envs, "attention") if reward == "credit" else envs


# --- Agents ---------------------------------------------------------------------------------------


def at_random(env_id: str) -> Callable[[str, int, int], Progress]:
    def run(reward: str, seed: int, timesteps: int) -> Progress:
        envs = make_envs(env_id, 16, reward)
        rng, progress = np.random.default_rng(seed), Progress()
        for number in range(timesteps // (16 * NUM_TOKENS)):
            envs.reset(seed=[int(s) for s in rng.integers(2**31 - 1, size=16)])
            while not envs.unwrapped.ended.all():
                *_, infos = envs.step(rng.integers(envs.single_action_space.n, size=16))
            progress.add((number + 1) * 16 * NUM_TOKENS, infos["score"].tolist())
        return progress

    return run


def on_features(algorithm: type[BaseAlgorithm], **arguments) -> Callable[[str, int, int], Progress]:
    """Stable-Baselines3 with a small network on features."""

    def run(reward: str, seed: int, timesteps: int) -> Progress:
        envs = make_envs("ABC-RLHF-Features-v0", 64, reward)
        if algorithm is MaskablePPO:
            envs = vector.ActionMask(envs)
        env = VecNormalize(TextVecEnv(envs), norm_reward=False, gamma=1.0)
        settings = dict(arguments)
        progress, callbacks = Progress(), []
        if reward == "credit" and algorithm is DQN:
            settings["replay_buffer_class"] = HindsightReplayBuffer
        elif reward == "credit":
            callbacks = [HindsightCreditCallback()]
        policy_kwargs = {"net_arch": [256, 256]}
        agent = algorithm(
            "MlpPolicy", env, gamma=1.0, seed=seed, policy_kwargs=policy_kwargs, **settings
        )
        agent.learn(timesteps, callback=CallbackList([Recorder(progress), *callbacks]))
        return progress

    return run


def sb3_language_model(reward: str, seed: int, timesteps: int) -> Progress:
    envs = make_envs("ABC-RLHF-v0", 16, reward)
    progress = Progress()
    callbacks = [HindsightCreditCallback()] if reward == "credit" else []
    agent = PPO(
        LanguageModelPolicy,
        TextVecEnv(envs),
        policy_kwargs={"model": "embedded"},
        learning_rate=1e-4,
        n_steps=3 * NUM_TOKENS,
        batch_size=64,
        n_epochs=2,
        gamma=1.0,
        vf_coef=0.1,
        seed=seed,
    )
    agent.learn(timesteps, callback=CallbackList([Recorder(progress), *callbacks]))
    progress.kl = kl_to_the_reference(agent.policy.network, seed)
    return progress


@torch.no_grad()
def kl_to_the_reference(policy: agents.LanguageModelPolicy, seed: int) -> float:
    """Mean over 128 sampled completions of Σ_t log π(y_t) - log π_ref(y_t)."""
    envs = make_envs("ABC-RLHF-v0", 16, "sparse")
    generator = torch.Generator().manual_seed(seed)
    rollout = agents.collect_episodes(policy, envs, 128, generator)
    reference = agents.LanguageModelPolicy(load_language_model("embedded"), policy.rules)
    texts = rollout.input_ids, rollout.attention_mask, rollout.completion_mask
    difference = policy.evaluate(*texts).logprobs - reference.evaluate(*texts).logprobs
    return difference.sum(1).mean().item()


def bundled(agent_class: type[agents.Agent], **arguments) -> Callable[[str, int, int], Progress]:
    def run(reward: str, seed: int, timesteps: int) -> Progress:
        arguments_ = dict(arguments)
        # One forward per text gives the rewards that shaping pays step by step.
        envs = make_envs("ABC-RLHF-v0", 16, "sparse" if reward == "shaping" else reward)
        if reward == "shaping":
            envs = vector.CreditAssignment(envs, "shaping")
        if reward == "credit" and agent_class is not agents.PPO:
            arguments_["credit_weights"] = 0.5
        progress = Progress()

        def record(row: dict[str, float]) -> None:
            # The agent keeps no more than the mean of an iteration's 16 episodes.
            progress.add(int(row["time/total_timesteps"]), [row["rollout/score_mean"]] * 16)

        with tempfile.TemporaryDirectory() as log_dir:
            agent = agent_class(
                "embedded", envs, seed=seed, dtype="bfloat16", log_dir=log_dir, **arguments_
            )
            agent.learn(timesteps, callback=record)
        progress.kl = float(np.mean([row["rollout/kl"] for row in agent.history[-10:]]))
        return progress

    return run


@dataclass(frozen=True)
class Entry:
    """An agent, the rewards that make sense for it, and how long it trains."""

    run: Callable[[str, int, int], Progress]
    rewards: tuple[str, ...]
    timesteps: int
    on_features: bool


STEPS_ON_FEATURES = 256_000
OF_PPO = {
    "learning_rate": 1e-3,
    "n_steps": 2 * NUM_TOKENS,
    "batch_size": 256,
    "n_epochs": 4,
    "gae_lambda": 1.0,
}
OF_A2C = {"learning_rate": 3e-3, "n_steps": NUM_TOKENS, "use_rms_prop": False}
OF_DQN = {
    "learning_rate": 5e-4,
    "learning_starts": 2_000,
    "train_freq": 1,
    "gradient_steps": 4,
    "batch_size": 256,
    "buffer_size": 50_000,
    "target_update_interval": 2_000,
    "exploration_fraction": 0.3,
    "exploration_final_eps": 0.02,
}
AGENTS: dict[str, Entry] = {
    "random, 16 likeliest": Entry(at_random("ABC-RLHF-Features-v0"), ("sparse",), 8_192, True),
    "SB3 PPO, MLP": Entry(on_features(PPO, **OF_PPO), REWARDS, STEPS_ON_FEATURES, True),
    "SB3 A2C, MLP": Entry(on_features(A2C, **OF_A2C), REWARDS, STEPS_ON_FEATURES, True),
    "SB3 DQN, MLP": Entry(on_features(DQN, **OF_DQN), REWARDS, STEPS_ON_FEATURES, True),
    "MaskablePPO, MLP": Entry(on_features(MaskablePPO, **OF_PPO), REWARDS, STEPS_ON_FEATURES, True),
    "random, all tokens": Entry(at_random("ABC-RLHF-v0"), ("sparse",), 8_192, False),
    "SB3 PPO, language model": Entry(sb3_language_model, REWARDS, 15_360, False),
    "PPO": Entry(bundled(agents.PPO), REWARDS, 20_480, False),
    "RLOO": Entry(bundled(agents.RLOO), ("sparse", "credit"), 20_480, False),
    "GRPO": Entry(bundled(agents.GRPO), ("sparse", "credit"), 20_480, False),
}


def train(name: str, reward: str, seed: int, scale: float) -> pd.DataFrame:
    torch.set_num_threads(1)  # of each of the processes that run side by side
    entry = AGENTS[name]
    rows = entry.run(reward, seed, int(entry.timesteps * scale)).rows().round(4)
    for column, value in (("commit", COMMIT), ("seed", seed), ("reward", reward)):
        rows.insert(0, column, value)
    rows.insert(0, "agent", name)
    return rows


# --- Table and figure -----------------------------------------------------------------------------


def ends_of(run: pd.DataFrame) -> tuple[float, float]:
    """Mean score of the first and of the last episodes of a run."""
    episodes = run["episodes"].cumsum()
    first = run[episodes <= max(START, episodes.iloc[0])]
    last = run[episodes > episodes.iloc[-1] - END]
    return first["score"].mean(), last["score"].mean()


def steps_to(run: pd.DataFrame, score: float) -> float:
    """Steps until the mean score of ``END`` episodes reaches this; infinite if it never does."""
    mean = run["score"].rolling(END // CHUNK).mean()
    return float(run["timesteps"][mean >= score].min()) if (mean >= score).any() else np.inf


def interval(values: np.ndarray) -> float:
    """Half of the 95% interval of the mean over seeds, by Student's t."""
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def make_overview(runs: pd.DataFrame) -> list[str]:
    """Score at the end, in one row per agent."""
    lines = [
        "| agent | environment steps | sparse | shaping | credit |",
        "|---|---|---|---|---|",
    ]
    for name, entry in AGENTS.items():
        cells = [name, f"{entry.timesteps:,}"]
        for reward in REWARDS:
            group = runs[(runs["agent"] == name) & (runs["reward"] == reward)]
            ends = np.array([ends_of(run)[1] for _, run in group.groupby("seed")])
            empty = ends.size == 0
            cells.append("–" if empty else f"{ends.mean():+.2f} ± {interval(ends):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def make_table(runs: pd.DataFrame) -> str:
    lines = [
        f"Mean score of the last {END} episodes, with 95% intervals over seeds (Student's t).",
        "",
        *make_overview(runs),
        "",
        f"Mean score over seeds of the first {START} and the last {END} episodes; gain over the "
        "own start and over the random agent of the same form, with 95% intervals over seeds "
        "(Student's t); minutes of processor time, one thread; KL to the reference policy at the "
        "end, nats per episode, of agents that are language models; environment steps until the "
        f"mean of {END} episodes reaches +1, median over seeds.",
        "",
        "| agent | reward | seeds | steps | CPU min | start | end | gain over start | "
        "gain over random | KL | steps to +1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    summaries = {
        key: np.array([ends_of(run) for _, run in group.groupby("seed")])
        for key, group in runs.groupby(["agent", "reward"])
    }
    for name, entry in AGENTS.items():
        random = "random, 16 likeliest" if entry.on_features else "random, all tokens"
        for reward in entry.rewards:
            if (name, reward) not in summaries:
                continue
            group = runs.query("agent == @name and reward == @reward")
            start, end = summaries[name, reward].T
            level = summaries.get((random, "sparse"))
            over = end - (np.nan if level is None else level[:, 1].mean())
            last = group.groupby("seed").last()
            kl = last["kl"].mean()
            steps = np.median([steps_to(run, 1.0) for _, run in group.groupby("seed")])
            cells = [
                name,
                reward,
                str(len(end)),
                f"{last['timesteps'].mean():,.0f}",
                f"{last['seconds'].mean() / 60:.1f}",
                f"{start.mean():+.2f}",
                f"{end.mean():+.2f}",
                f"{(end - start).mean():+.2f} ± {interval(end - start):.2f}",
                f"{over.mean():+.2f} ± {interval(over):.2f}",
                "–" if np.isnan(kl) else f"{kl:.1f}",
                "–" if np.isinf(steps) else f"{steps:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(runs: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3, sharey=True)
    names = [name for name in AGENTS if not name.startswith("random")]
    colors = dict(zip(names, (f"C{i}" for i in range(len(names))), strict=True))
    for column, reward in enumerate(REWARDS):
        for row, x in enumerate(("timesteps", "seconds")):
            axes = panels[row, column]
            for name in names:
                # Without what is left over at the end of a run.
                chunks = runs[runs["episodes"] == CHUNK]
                group = chunks.query("agent == @name and reward == @reward")
                if group.empty:
                    continue
                chunk = group.groupby("seed").cumcount()
                mean = group.groupby(chunk)[[x, "score"]].mean()
                axes.plot(
                    mean[x],
                    mean["score"].rolling(4, min_periods=1).mean(),
                    label=name,
                    color=colors[name],
                )
            axes.set_xscale("log")
            axes.set_xlabel(
                "environment steps" if x == "timesteps" else "seconds of processor time, one thread"
            )
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0, column].set_title(reward)
    panels[0, 0].set_ylabel("mean score")
    panels[1, 0].set_ylabel("mean score")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


# --- Main -----------------------------------------------------------------------------------------


PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "stable-baselines3", "sb3-contrib")


def main(
    names: list[str], seeds: int, jobs: int, scale: float, output: Path, tables_only: bool
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "runs.parquet"
    runs = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    keys = ["agent", "reward", "seed"]
    done = set() if runs.empty else set(runs[keys].itertuples(index=False, name=None))
    todo = [
        (name, reward, seed)
        for seed in range(0 if tables_only else seeds)
        for name in names or AGENTS
        for reward in AGENTS[name].rewards
    ]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train, *one, scale): one for one in todo if one not in done}
        for future in as_completed(futures):
            runs = pd.concat([runs, future.result()], ignore_index=True)
            runs.sort_values([*keys, "timesteps"]).to_parquet(path, index=False)
            (output / "meta.json").write_text(json.dumps(describe(*PACKAGES), indent=2) + "\n")
            start, end = ends_of(future.result())
            print(f"{', '.join(map(str, futures[future]))}: {start:+.2f} → {end:+.2f}", flush=True)
    runs = runs.sort_values([*keys, "timesteps"])
    table = make_table(runs)
    (output / "table.md").write_text(table)
    draw(runs, output / "curves.png")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--agent",
        action="append",
        choices=AGENTS,
        dest="names",
        help="one of them; may be repeated",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the lengths of all runs"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--tables-only", action="store_true")
    arguments = parser.parse_args()
    main(**vars(arguments))
