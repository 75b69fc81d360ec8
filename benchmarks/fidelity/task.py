"""The methods of credit assignment, and the two tasks on which they are measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch

import textgym  # noqa: F401  (registers the environments)
from textgym import planted
from textgym.agents import LanguageModelPolicy, Rollout, collect_episodes
from textgym.agents.environment import action_rules
from textgym.credit import CreditAssigner, get_credit_assigner
from textgym.models import (
    Completions,
    Readout,
    RewardModel,
    ScoredCompletions,
    load_language_model,
    load_reward_model,
)

__all__ = ["METHODS", "Methods", "Task", "credit_of"]

Methods = dict[str, tuple[str, dict[str, Any]]]
METHODS: Methods = {
    "sparse": ("sparse", {}),
    "uniform": ("uniform", {}),
    "random": ("random", {}),
    "position": ("position", {}),
    "shuffled ABC": ("shuffled-abc", {}),
    "ABC": ("abc", {}),
    "ABC, first layer": ("abc", {"layers": 0}),
    "ABC, all layers": ("abc", {"layers": "all"}),
    "ABC, largest head": ("abc", {"heads": "max"}),
    "attention rollout": ("attention-rollout", {}),
    "ABC-D": ("abc-d", {}),
    "ABC-D2": ("abc-d2", {}),
    "gradient × input": ("gradient-times-input", {}),
    "integrated gradients": ("integrated-gradients", {}),
    "occlusion": ("occlusion", {}),
    "Shapley, tokens": ("shapley", {}),
    "Shapley, spans of 4": ("shapley", {"spans": 4}),
    "prefix score (RED)": ("prefix-score", {}),
    "causal shaping": ("shaping", {}),
}
"""Names of the credit assigners, and arguments that differ from their defaults."""


class Task:
    """A reward model and a policy on one tokenizer.

    Args:
        name: "planted", whose true contributions are known, or "embedded".
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.reward_model: RewardModel = load_reward_model(name)
        self.policy = load_language_model(name)

    def assigner(self, name: str, arguments: dict[str, Any]) -> CreditAssigner:
        """A credit assigner that redistributes all of the score (β = 1, γ = 1)."""
        if name == "sparse":
            return get_credit_assigner(name)
        arguments = {**arguments, "beta": 1.0, "gamma": 1.0}
        if arguments.get("layers") == "all":
            arguments["layers"] = tuple(range(self.reward_model.model.config.num_hidden_layers))
        if name in ("abc-d", "abc-d2"):
            arguments["policy"] = self.policy
        return get_credit_assigner(name, **arguments)

    def sample(self, num_completions: int, **env_arguments: Any) -> Completions:
        """Completions of the untrained policy."""
        env_id = "ABC-RLHF-Planted-v0" if self.name == "planted" else "ABC-RLHF-v0"
        envs = gym.make_vec(env_id, num_envs=64, autoreset_mode="Disabled", **env_arguments)
        policy = LanguageModelPolicy(self.policy, action_rules(envs))
        generator = torch.Generator().manual_seed(0)
        return _to_completions(collect_episodes(policy, envs, num_completions, generator))

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Read-outs of the reward model, with the score that the environment pays."""
        scored = self.reward_model.read(completions, readouts)
        if self.name != "planted":
            return scored
        rows = zip(completions.input_ids, completions.attention_mask, strict=True)
        scores = [planted.score(ids[mask].tolist()) for ids, mask in rows]
        return replace(scored, score=torch.tensor(scores))


def credit_of(
    task: Task, assigner: CreditAssigner, completions: Completions, chunk: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Credit (num_completions, num_tokens), and the score that it shares out.

    Args:
        task: Whose reward model is read.
        assigner: The method.
        completions: The texts.
        chunk: Number of texts that are read together.
    """
    credit, score = [], []
    for part in _chunks(completions, chunk):
        scored = task.read(part, assigner.readouts)
        credit.append(assigner(scored))
        score.append(scored.score)
    return torch.cat(credit), torch.cat(score)


def _chunks(completions: Completions, size: int) -> Iterator[Completions]:
    for first in range(0, len(completions), size):
        yield completions.select(slice(first, first + size))


def _to_completions(rollout: Rollout) -> Completions:
    mask = torch.zeros_like(rollout.attention_mask)
    mask[:, -rollout.completion_mask.shape[1] :] = rollout.completion_mask
    return Completions(rollout.input_ids, rollout.attention_mask, mask)
