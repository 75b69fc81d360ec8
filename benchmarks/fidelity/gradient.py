"""Bias and variance of the policy gradient, enumerated on the planted task."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from textgym import exact, planted
from textgym.models import Completions

from .task import Methods, Task, credit_of

__all__ = ["gradient_of", "measure"]

BETAS = (0.25, 0.5, 0.75, 1.0)


def measure(output: Path, methods: Methods, horizon: int = 4) -> None:
    """Write gradient.csv, from all completions of ``horizon`` tokens of one prompt.

    Each method, with β of the score redistributed, is compared with sparse reward: cosine of the
    gradients, ratio of their lengths, ratio of the variances of a one-episode estimate.
    """
    task = Task("planted")
    prompt = planted.encode("the film was")
    words = range(planted.EOS_ID + 1, len(planted.VOCABULARY))  # without special tokens
    texts = list(itertools.product(words, repeat=horizon))
    completions = Completions.from_lists([prompt] * len(texts), texts)
    trajectories = exact.Trajectories.of_texts(texts, num_actions=len(planted.VOCABULARY))
    logits = _policy_logits(task, completions, trajectories, len(prompt))
    results, reference = [], None
    for method, definition in methods.items():
        credit, _ = credit_of(task, task.assigner(*definition), completions, chunk=2048)
        rewards = credit[:, len(prompt) :].double().numpy()
        for beta in BETAS:
            sparse = np.zeros_like(rewards)
            sparse[:, -1] = rewards.sum(1)
            mixed = beta * rewards + (1 - beta) * sparse
            gradient, variance = gradient_of(trajectories, logits, mixed)
            if reference is None:
                reference = gradient, variance  # The first method is sparse.
            results.append(
                {
                    "method": method,
                    "beta": beta,
                    "cosine": exact.cosine(gradient, reference[0]),
                    "length": np.linalg.norm(gradient) / np.linalg.norm(reference[0]),
                    "variance": variance / reference[1],
                }
            )
    pd.DataFrame(results).round(6).to_csv(output / "gradient.csv", index=False)


@torch.no_grad()
def _policy_logits(
    task: Task, completions: Completions, trajectories: exact.Trajectories, start: int
) -> np.ndarray:
    """The policy's logits in every state, (num_states, num_actions)."""
    result = np.zeros((trajectories.num_states, trajectories.num_actions))
    for rows in torch.arange(len(completions)).split(4096):
        logits = task.policy(input_ids=completions.input_ids[rows]).logits[:, start - 1 : -1]
        result[trajectories.states[rows]] = logits.double().numpy()
    return result


def gradient_of(
    trajectories: exact.Trajectories, logits: np.ndarray, rewards: np.ndarray
) -> tuple[np.ndarray, float]:
    """Expected gradient, and the total variance of its estimate from one episode.

    The estimate is Σ_t ∇ log π(a_t|s_t) (G_t − V(s_t)). Its baseline is the exact expectation of
    what is left to be paid, so this is what an agent with a perfect critic and λ = 1 follows. The
    logits of different states are different parameters, so an episode's squared length is the sum
    over its steps of (G_t − V(s_t))² · |∇ log π(a_t|s_t)|².
    """
    returns = exact.returns_to_go(rewards, trajectories.mask)
    values = exact.state_values(trajectories, logits, returns)
    advantages = returns - values[trajectories.states]
    gradient = exact.policy_gradient(trajectories, logits, advantages)
    policy = exact.policy_probabilities(trajectories, logits)
    chosen = policy[trajectories.states, trajectories.actions]
    # |∇ log π(a|s)|² by the logits of s: (1 − π_a)² + Σ_{b≠a} π_b²
    square = (1 - chosen) ** 2 + (policy**2).sum(1)[trajectories.states] - chosen**2
    probability = exact.trajectory_probabilities(trajectories, logits)
    second_moment = probability @ (advantages**2 * square).sum(1)
    return gradient, float(second_moment - (gradient**2).sum())
