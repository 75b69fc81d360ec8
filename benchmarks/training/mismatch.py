"""Samplers that differ from the policy by one thing, and how far that takes them from it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import AGENTS, LanguageModelPolicy, Rollout, collect_episodes
from textgym.agents.environment import action_rules
from textgym.agents.importance import weighted_advantages
from textgym.agents.mismatch import find_mismatch, mismatch
from textgym.models import load_language_model

__all__ = ["CAUSES", "measure"]

CAP = 2.0
"""The default of ``importance_cap``."""

Sampled = tuple[LanguageModelPolicy, Rollout, Tensor]
"""The policy that would be trained, a rollout, and what its sampler says of its tokens."""


class TopP(LanguageModelPolicy):
    """Samples from the smallest set of tokens that has this much probability."""

    top_p: float

    def next_token_logprobs(self, logits: Tensor, num_generated: Tensor) -> Tensor:
        logprobs = super().next_token_logprobs(logits, num_generated)
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        tail = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
        return logprobs.masked_fill(tail, -torch.inf).log_softmax(dim=-1)


def _embedded(env: VectorEnv, **settings: object) -> LanguageModelPolicy:
    return LanguageModelPolicy(load_language_model("embedded"), action_rules(env), **settings)


def _sampled(
    policy: LanguageModelPolicy, sampler: LanguageModelPolicy, env: VectorEnv, episodes: int,
    seed: int,
) -> Sampled:  # fmt: skip
    rollout = collect_episodes(sampler, env, episodes, torch.Generator().manual_seed(seed))
    return policy, rollout, rollout.logprobs


def _same(env: VectorEnv, episodes: int, seed: int) -> Sampled:
    return _sampled(_embedded(env), _embedded(env), env, episodes, seed)


def _trainer_in_bfloat16(env: VectorEnv, episodes: int, seed: int) -> Sampled:
    trained = _embedded(env, autocast_dtype=torch.bfloat16)
    return _sampled(trained, _embedded(env), env, episodes, seed)


def _both_in_bfloat16(env: VectorEnv, episodes: int, seed: int) -> Sampled:
    policy = _embedded(env, autocast_dtype=torch.bfloat16)
    return _sampled(policy, policy, env, episodes, seed)


def _temperature(temperature: float, env: VectorEnv, episodes: int, seed: int) -> Sampled:
    sampler = _embedded(env, temperature=temperature)
    return _sampled(_embedded(env), sampler, env, episodes, seed)


def _raw_logprobs(temperature: float, env: VectorEnv, episodes: int, seed: int) -> Sampled:
    policy = _embedded(env, temperature=temperature)
    policy, rollout, _ = _sampled(policy, policy, env, episodes, seed)
    with torch.no_grad():
        raw = _embedded(env).evaluate(*rollout.texts).logprobs
    return policy, rollout, raw


def _top_p(top_p: float, env: VectorEnv, episodes: int, seed: int) -> Sampled:
    sampler = TopP(load_language_model("embedded"), action_rules(env))
    sampler.top_p = top_p
    return _sampled(_embedded(env), sampler, env, episodes, seed)


def _one_update_behind(agent: str, env: VectorEnv, episodes: int, seed: int) -> Sampled:
    with tempfile.TemporaryDirectory() as folder:
        trained = AGENTS[agent]("embedded", env, seed=seed, log_dir=folder)
        before = copy.deepcopy(trained.policy)
        trained.learn(1)
    return _sampled(trained.policy, before, env, episodes, seed)


CAUSES: dict[str, Callable[[VectorEnv, int, int], Sampled]] = {
    "none, both in float32": _same,
    "none, both in bfloat16": _both_in_bfloat16,
    "policy in bfloat16, sampler in float32": _trainer_in_bfloat16,
    "temperature .95 instead of 1": partial(_temperature, 0.95),
    "temperature .7 instead of 1": partial(_temperature, 0.7),
    "log-probabilities from before a temperature of .7": partial(_raw_logprobs, 0.7),
    "top-p .99": partial(_top_p, 0.99),
    "top-p .95": partial(_top_p, 0.95),
    "one update behind, PPO": partial(_one_update_behind, "ppo"),
    "one update behind, RLOO": partial(_one_update_behind, "rloo"),
    "one update behind, GRPO": partial(_one_update_behind, "grpo"),
}
"""What makes a sampler differ, and how to sample so."""


def measure(episodes: int, cause: str, seed: int) -> pd.DataFrame:
    """Sample with a cause, and measure what agents log; a row."""
    env = gym.make_vec("ABC-RLHF-v0", num_envs=16, autoreset_mode=AutoresetMode.DISABLED)
    policy, rollout, sampler_logprobs = CAUSES[cause](env, episodes, seed)
    mask = rollout.completion_mask
    with torch.no_grad():
        logprobs = policy.evaluate(*rollout.texts).logprobs
    measured = mismatch(logprobs, sampler_logprobs, mask)
    warned = find_mismatch(measured) is not None
    row = {"episodes": episodes, "tokens": int(mask.sum()), **measured, "warned": int(warned)}
    for kind, advantages in (
        ("tokens", torch.ones(mask.shape)),
        ("completions", torch.ones(episodes)),
    ):
        _, scalars = weighted_advantages(advantages, logprobs, sampler_logprobs, mask, CAP)
        row |= {f"{name} of {kind}": value for name, value in scalars.items()}
    return pd.DataFrame([{name.removeprefix("rollout/"): value for name, value in row.items()}])
