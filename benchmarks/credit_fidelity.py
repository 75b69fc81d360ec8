"""What does each credit know, what does it distort, and what does it cost?

python benchmarks/credit_fidelity.py

Every method of credit assignment, all of the score redistributed (β = 1, γ = 1), on two tasks:

- the planted task (ABC-RLHF-Planted-v0), whose true contributions are known;
- IMDb completions (extra ``textgym[benchmarks]``), scored by the embedded reward model.

It writes, each from raw numbers that it writes as well:

- rank correlation with the true contributions, per completion (planted);
- the policy gradient on all completions of a prompt, enumerated: its cosine with that of the
  sparse reward, and the variance of the estimate from one episode (planted);
- deletion and insertion curves, with comprehensiveness and sufficiency (DeYoung et al., 2020, arXiv
  1911.03429): the tokens with the most credit in the score's direction are deleted, or kept alone;
- extra passes through the reward model, and time per completion relative to plain scoring;
- how far integrated gradients are from summing to the score (their completeness).

``--also my_module:my-credit --output ...`` measures a method of your own beside them. The clock is
only right on an otherwise idle machine. ``--parts`` runs some of the measurements again, and
``--parts`` without any makes table and figure anew from what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from circumstances import commit, describe
from credit_fidelity_report import draw, make_table
from scipy.stats import spearmanr

import textgym  # noqa: F401  (registers the environments)
from textgym import exact, planted
from textgym.agents import PPO, Rollout, collect_episodes
from textgym.credit import CreditAssigner, IntegratedGradientsCredit, get_credit_assigner
from textgym.models import (
    Completions,
    PrefixScores,
    RewardModel,
    ScoredCompletions,
    load_language_model,
    load_reward_model,
)

METHODS: dict[str, tuple[str, dict]] = {
    "sparse": ("sparse", {}),
    "uniform": ("uniform", {}),
    "random": ("random", {}),
    "position": ("position", {}),
    "shuffled ABC": ("shuffled-attention", {}),
    "ABC": ("attention", {}),
    "ABC, first layer": ("attention", {"layers": 0}),
    "ABC, all layers": ("attention", {"layers": "all"}),
    "ABC, largest head": ("attention", {"heads": "max"}),
    "attention rollout": ("attention-rollout", {}),
    "ABC-D": ("policy-attention", {}),
    "ABC-D2": ("policy-attention-last", {}),
    "gradient × input": ("gradient-times-input", {}),
    "integrated gradients": ("integrated-gradients", {}),
    "occlusion": ("occlusion", {}),
    "Shapley, tokens": ("shapley", {}),
    "Shapley, spans of 4": ("shapley", {"spans": 4}),
    "prefix score (RED)": ("prefix-score", {}),
    "attention shaping": ("shaping", {}),
}
FRACTIONS = np.linspace(0.0, 1.0, 11)
ERASER_FRACTIONS = (0.1, 0.2, 0.3, 0.5)
HORIZON = 4


class Task:
    """A reward model and a policy on one tokenizer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reward_model: RewardModel = load_reward_model(name)
        self.policy = load_language_model(name)

    def assigner(self, method: str) -> CreditAssigner:
        """A method that redistributes all of the score."""
        name, arguments = METHODS[method]
        arguments = dict(arguments, beta=1.0, gamma=1.0)
        if arguments.get("layers") == "all":
            arguments["layers"] = tuple(range(self.reward_model.model.config.num_hidden_layers))
        if name.startswith("policy"):
            arguments["policy"] = self.policy
        if name == "sparse":
            arguments = {}
        return get_credit_assigner(name, **arguments)

    def sample(self, num_completions: int, **env_arguments) -> Completions:
        """Completions of the untrained policy."""
        env_id = "ABC-RLHF-Planted-v0" if self.name == "planted" else "ABC-RLHF-v0"
        envs = gym.make_vec(env_id, num_envs=64, autoreset_mode="Disabled", **env_arguments)
        agent = PPO(self.name, envs, episodes_per_iteration=64, seed=0)
        generator = torch.Generator().manual_seed(0)
        return to_completions(collect_episodes(agent.policy, envs, num_completions, generator))

    def read(self, completions: Completions, readouts=()) -> ScoredCompletions:
        """Read-outs of the reward model, and the score that the environment pays."""
        scored = self.reward_model.read(completions, readouts)
        if self.name != "planted":
            return scored
        texts = [ids[mask].tolist() for ids, mask in zip(*tokens_of(completions), strict=True)]
        return replace(scored, score=torch.tensor([planted.score(text) for text in texts]))


def tokens_of(completions: Completions) -> tuple[torch.Tensor, torch.Tensor]:
    return completions.input_ids, completions.attention_mask


def to_completions(rollout: Rollout) -> Completions:
    mask = torch.zeros_like(rollout.attention_mask)
    mask[:, -rollout.completion_mask.shape[1] :] = rollout.completion_mask
    return Completions(rollout.input_ids, rollout.attention_mask, mask)


def chunks(completions: Completions, size: int) -> Iterator[Completions]:
    for first in range(0, len(completions), size):
        yield completions.select(slice(first, first + size))


def credit_of(
    task: Task, method: str, completions: Completions, chunk: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Credit (num_completions, num_tokens) and the score that it shares out."""
    assigner = task.assigner(method)
    credit, score = [], []
    for part in chunks(completions, chunk):
        scored = task.read(part, assigner.readouts)
        credit.append(assigner(scored))
        score.append(scored.score)
    return torch.cat(credit), torch.cat(score)


# --- Rank correlation with the truth --------------------------------------------------------------


def measure_correlation(output: Path) -> None:
    """Spearman's correlation within each completion, of the credits and of their sizes."""
    task = Task("planted")
    completions = task.sample(1024)
    ids, attention_mask = tokens_of(completions)
    truth = [
        planted.contributions(row[mask].tolist())[-int(completion.sum()) :]
        for row, mask, completion in zip(
            ids, attention_mask, completions.completion_mask, strict=True
        )
    ]
    # Where no token contributed, or all did alike, there is no order to find.
    varied = [row for row, values in enumerate(truth) if np.ptp(values) > 0]
    completions = completions.select(torch.tensor(varied))
    rows = []
    for method in METHODS:
        credit, _ = credit_of(task, method, completions)
        for given, mask, index in zip(credit, completions.completion_mask, varied, strict=True):
            earned, true = given[mask].numpy(), truth[index]
            rows.append(
                {
                    "method": method,
                    "completion": index,
                    "signed": rank_correlation(earned, true),
                    "magnitude": rank_correlation(np.abs(earned), np.abs(true)),
                }
            )
    pd.DataFrame(rows).round(4).to_parquet(output / "correlation.parquet", index=False)


def rank_correlation(credit: np.ndarray, truth: np.ndarray) -> float:
    """Spearman's ρ; 0 where all tokens have the same, which orders nothing."""
    if min(np.ptp(credit), np.ptp(truth)) < 1e-6:
        return 0.0
    return float(spearmanr(credit, truth).statistic)


# --- The policy gradient, enumerated --------------------------------------------------------------


def measure_gradient(output: Path) -> None:
    """Bias and variance of the gradient for all completions of four tokens."""
    task = Task("planted")
    prompt = planted.encode("the film was")
    words = range(planted.EOS_ID + 1, len(planted.VOCABULARY))  # without special tokens
    texts = list(itertools.product(words, repeat=HORIZON))
    completions = Completions.from_lists([prompt] * len(texts), texts)
    trajectories = exact.Trajectories.of_texts(texts, num_actions=len(planted.VOCABULARY))
    logits = policy_logits(task, completions, trajectories, len(prompt))
    rows, reference = [], None
    for method in METHODS:
        credit, _ = credit_of(task, method, completions, chunk=2048)
        rewards = credit[:, len(prompt) :].double().numpy()
        for beta in (0.25, 0.5, 0.75, 1.0):
            sparse = np.zeros_like(rewards)
            sparse[:, -1] = rewards.sum(1)
            mixed = beta * rewards + (1 - beta) * sparse
            gradient, variance = gradient_of(trajectories, logits, mixed)
            if reference is None:
                reference = gradient, variance  # the first method is sparse
            rows.append(
                {
                    "method": method,
                    "beta": beta,
                    "cosine": exact.cosine(gradient, reference[0]),
                    "length": np.linalg.norm(gradient) / np.linalg.norm(reference[0]),
                    "variance": variance / reference[1],
                }
            )
    pd.DataFrame(rows).round(6).to_csv(output / "gradient.csv", index=False)


@torch.no_grad()
def policy_logits(
    task: Task, completions: Completions, trajectories: exact.Trajectories, start: int
) -> np.ndarray:
    """The policy's log-probabilities in every state, (num_states, num_actions)."""
    result = np.zeros((trajectories.num_states, trajectories.num_actions))
    for rows in torch.arange(len(completions)).split(4096):
        logits = task.policy(input_ids=completions.input_ids[rows]).logits[:, start - 1 : -1]
        result[trajectories.states[rows]] = logits.double().numpy()
    return result


def gradient_of(
    trajectories: exact.Trajectories, logits: np.ndarray, rewards: np.ndarray
) -> tuple[np.ndarray, float]:
    """Expected gradient, and the total variance of its estimate from one episode.

    The estimate is Σ_t ∇ log π(a_t|s_t) (G_t - V(s_t)), with the exact value of what is left to be
    paid as the baseline: what an agent with a perfect critic and λ = 1 follows. The logits of
    different states are different parameters, so an episode's squared length is the sum over its
    steps of (G_t - V(s_t))² · |∇ log π(a_t|s_t)|².
    """
    returns = exact.returns_to_go(rewards, trajectories.mask)
    values = exact.state_values(trajectories, logits, returns)
    advantages = returns - values[trajectories.states]
    gradient = exact.policy_gradient(trajectories, logits, advantages)
    policy = exact.policy_probabilities(trajectories, logits)
    chosen = policy[trajectories.states, trajectories.actions]
    # |∇ log π(a|s)|² by the logits of s: (1 - π_a)² + Σ_{b≠a} π_b²
    square = (1 - chosen) ** 2 + (policy**2).sum(1)[trajectories.states] - chosen**2
    probability = exact.trajectory_probabilities(trajectories, logits)
    second_moment = probability @ (advantages**2 * square).sum(1)
    return gradient, float(second_moment - (gradient**2).sum())


# --- Deletion and insertion -----------------------------------------------------------------------


def measure_erasure(output: Path) -> None:
    """Mean score, in the score's direction, with the tokens of most credit deleted or alone."""
    curves, metrics = [], []
    for task, completions in erasure_tasks():
        for method in METHODS:
            deleted, kept = erasure_curves(task, method, completions)
            for fraction in FRACTIONS:
                key = round(float(fraction), 2)
                means = deleted[key].mean().item(), kept[key].mean().item()
                curves.append((task.name, method, key, *means))
            whole = deleted[0.0]
            comprehensiveness = whole - sum(deleted[f] for f in ERASER_FRACTIONS) / 4
            sufficiency = whole - sum(kept[f] for f in ERASER_FRACTIONS) / 4
            pairs = zip(comprehensiveness.tolist(), sufficiency.tolist(), strict=True)
            metrics += [(task.name, method, row, *pair) for row, pair in enumerate(pairs)]
    columns = ["task", "method", "fraction", "deletion", "insertion"]
    pd.DataFrame(curves, columns=columns).round(5).to_csv(output / "erasure.csv", index=False)
    columns = ["task", "method", "completion", "comprehensiveness", "sufficiency"]
    table = pd.DataFrame(metrics, columns=columns).round(4)
    table.to_parquet(output / "erasure_metrics.parquet", index=False)


def erasure_tasks() -> Iterator[tuple[Task, Completions]]:
    task = Task("planted")
    yield task, task.sample(256)
    task = Task("embedded")
    yield task, task.sample(128, prompts="imdb", min_new_tokens=32, max_new_tokens=32)


def erasure_curves(
    task: Task, method: str, completions: Completions
) -> tuple[dict[float, torch.Tensor], dict[float, torch.Tensor]]:
    """Score towards the whole text's sign, per completion, by the fraction deleted or kept."""
    credit, score = credit_of(task, method, completions)
    direction = torch.where(score >= 0, 1.0, -1.0)
    mask = completions.completion_mask
    against = (-credit * direction[:, None]).masked_fill(~mask, torch.inf)
    # Ties, as of all tokens but the last under sparse reward, fall at random.
    noise = torch.rand(credit.shape, generator=torch.Generator().manual_seed(0))
    rank = torch.from_numpy(np.lexsort((noise.numpy(), against.numpy()), axis=1)).argsort(1)
    length = mask.sum(1, keepdim=True)
    deleted, kept = {}, {}
    for fraction in sorted({*FRACTIONS.round(2).tolist(), *ERASER_FRACTIONS}):
        first = mask & (rank < (fraction * length).round())
        for result, stays in ((deleted, mask & ~first), (kept, first)):
            text = Completions(completions.input_ids, completions.prompt_mask | stays, stays)
            result[fraction] = direction * task.reward_model.read(text).score
    return deleted, kept


# --- Cost -----------------------------------------------------------------------------------------


def measure_cost(output: Path, rounds: int = 15) -> None:
    """Counted passes, and time in rounds of all methods, each beside plain scoring."""
    rows = []
    for name, new_tokens in (("planted", 8), ("embedded", 16), ("embedded", 48)):
        task = Task(name)
        arguments = {} if name == "planted" else {"prompts": "imdb"}
        completions = task.sample(
            64, min_new_tokens=new_tokens, max_new_tokens=new_tokens, **arguments
        ).select(slice(0, 16))
        plain = partial(task.reward_model.read, completions)
        for method in METHODS:
            assigner = task.assigner(method)
            run = partial(read_and_assign, task, completions, assigner)
            forward, backward = count_passes(task, run)
            is_slow = assigner.forward_passes(new_tokens) > 1
            pairs = [(seconds(plain), seconds(run)) for _ in range(1 if is_slow else rounds)]
            rows += [
                {
                    "task": name,
                    "new_tokens": new_tokens,
                    "method": method,
                    "extra_forward": forward / len(completions) - 1,
                    "backward": backward / len(completions),
                    "round": number,
                    "plain_seconds": before,
                    "seconds": after,
                }
                for number, (before, after) in enumerate(pairs)
            ]
    pd.DataFrame(rows).round(6).to_csv(output / "cost.csv", index=False)


def read_and_assign(task: Task, completions: Completions, assigner: CreditAssigner) -> torch.Tensor:
    return assigner(task.reward_model.read(completions, assigner.readouts))


def seconds(run: Callable[[], object], least: float = 0.1) -> float:
    """Time of one call, from as many as fill a tenth of a second; the first one warms up.

    What takes a second and more is called once.
    """
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    if first > 1.0:
        return first
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def count_passes(task: Task, run: Callable[[], object]) -> tuple[int, int]:
    """Texts that went through reward model and policy, forwards and backwards."""
    counts = [0, 0]

    def forward(module, arguments, keywords, result):
        values = keywords.get("input_ids", keywords.get("inputs_embeds"))
        counts[0] += len(values)
        hidden = result.last_hidden_state
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: counts.__setitem__(1, counts[1] + len(gradient)))

    bodies = [task.reward_model.model.base_model, task.policy.base_model]
    handles = [body.register_forward_hook(forward, with_kwargs=True) for body in bodies]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts[0], counts[1]


# --- Completeness of integrated gradients ---------------------------------------------------------


def measure_completeness(output: Path) -> None:
    """|sum of the attributions - (score - baseline's score)|, mean over IMDb completions."""
    task = Task("embedded")
    completions = task.sample(64, prompts="imdb", min_new_tokens=16, max_new_tokens=16)
    completions = completions.select(slice(0, 16))
    scored = task.reward_model.read(completions, [PrefixScores()])
    rows = []
    for baseline in ("mean", "zero"):
        for num_steps in (8, 16, 32, 64):
            method = IntegratedGradientsCredit(1.0, num_steps=num_steps, baseline=baseline)
            total = (method.attributions(scored) * scored.completion_mask).sum(1)
            expected = scored.score - method.baseline_score(scored)
            rows.append(
                {
                    "baseline": baseline,
                    "num_steps": num_steps,
                    "mean_error": (total - expected).abs().mean().item(),
                    "largest_error": (total - expected).abs().max().item(),
                    "mean_sum": expected.abs().mean().item(),
                }
            )
    pd.DataFrame(rows).round(6).to_csv(output / "completeness.csv", index=False)


# --- Main -----------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Path], None]] = {
    "correlation": measure_correlation,
    "gradient": measure_gradient,
    "erasure": measure_erasure,
    "completeness": measure_completeness,
    "cost": measure_cost,
}


PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "numpy", "scipy", "captum")


def main(output: Path, parts: list[str], also: list[str]) -> None:
    METHODS.update({name: (name, {}) for name in also})
    output.mkdir(parents=True, exist_ok=True)
    path = output / "meta.json"
    for part in parts:
        circumstances = describe(*PACKAGES) | {
            "commit": commit(),
            "threads": torch.get_num_threads(),
        }
        start = time.perf_counter()
        PARTS[part](output)
        meta = json.loads(path.read_text()) if path.exists() else {}
        meta[part] = circumstances | {"seconds": round(time.perf_counter() - start)}
        path.write_text(json.dumps(meta, indent=2) + "\n")
        print(f"{part}: {meta[part]['seconds']} s", flush=True)
    missing = [part for part in PARTS if part not in json.loads(path.read_text())]
    if missing:
        print(f"no table yet: {', '.join(missing)} not measured")
        return
    table = make_table(output, METHODS)
    (output / "table.md").write_text(table)
    draw(output, METHODS, HORIZON)
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/credit_fidelity"))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--also", nargs="*", default=[], help='further methods by name, "module:name" for your own'
    )
    arguments = parser.parse_args()
    main(**vars(arguments))
