"""The bundled agents, and an agent at random."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from reports.agents import ABC, SHAPING
from textgym import agents
from textgym.models import load_language_model
from textgym.wrappers.vector import CreditAssignment

from .episodes import NUM_TOKENS, TOKENS, Progress, make_envs

__all__ = ["Run", "at_random", "bundled", "kl_to_the_reference"]

_KL = {"kl_coef": 0.1, "kl_target": 6.0}
_ONE_STEP = {"learning_rate": 2e-4, "num_epochs": 1, "minibatch_size": None, **_KL}
_EARLIER_DEFAULTS: dict[type[agents.Agent], dict[str, Any]] = {
    agents.PPO: {"learning_rate": 5e-5, **_KL},
    agents.RLOO: _ONE_STEP,
    agents.GRPO: _ONE_STEP,
}

Run = Callable[[str, int, int], Progress]
"""From reward, seed and number of timesteps to the scores."""


def at_random(env_id: str) -> Run:
    """An agent that draws its actions uniformly."""

    def run(reward: str, seed: int, timesteps: int) -> Progress:
        envs = make_envs(env_id, 16, reward)
        num_actions = envs.single_action_space.n  # type: ignore[attr-defined]
        rng, progress = np.random.default_rng(seed), Progress()
        for number in range(max(1, timesteps // (16 * NUM_TOKENS))):
            envs.reset(seed=[int(s) for s in rng.integers(2**31 - 1, size=16)])  # type: ignore[arg-type]
            for _ in range(NUM_TOKENS):
                *_, infos = envs.step(rng.integers(num_actions, size=16))
            progress.add((number + 1) * 16 * NUM_TOKENS, infos["score"].tolist())
        return progress

    return run


def bundled(agent_class: type[agents.Agent], **hyperparameters: Any) -> Run:
    """One of textgym's agents in bfloat16, at hyperparameters that were its defaults."""

    def run(reward: str, seed: int, timesteps: int) -> Progress:
        envs: VectorEnv
        if reward == SHAPING:
            # Relabels finished episodes with what the wrapper AttentionShaping pays step by step:
            # one forward pass per text.
            envs = CreditAssignment(make_envs(TOKENS, 16, "sparse"), "shaping")
        else:
            envs = make_envs(TOKENS, 16, reward)
        weights = {"credit_weights": 0.5} if reward == ABC and agent_class is not agents.PPO else {}
        progress = Progress()

        def record(row: dict[str, float]) -> None:
            # The agent tells the mean of an iteration's 16 episodes, not the single scores.
            progress.add(int(row["time/total_timesteps"]), [row["rollout/score_mean"]] * 16)

        with tempfile.TemporaryDirectory() as log_dir:
            agent = agent_class(
                "embedded",
                envs,
                seed=seed,
                dtype="bfloat16",
                log_dir=log_dir,
                **_EARLIER_DEFAULTS[agent_class],
                **hyperparameters,
                **weights,
            )
            agent.learn(timesteps, callback=record)
        progress.kl = float(np.mean([row["rollout/kl"] for row in agent.history[-10:]]))
        return progress

    return run


@torch.no_grad()
def kl_to_the_reference(policy: agents.LanguageModelPolicy, seed: int) -> float:
    """Mean over 128 sampled completions of Σ_t log π(y_t) − log π_ref(y_t)."""
    envs = make_envs(TOKENS, 16, "sparse")
    generator = torch.Generator().manual_seed(seed)
    rollout = agents.collect_episodes(policy, envs, 128, generator)
    reference = agents.LanguageModelPolicy(load_language_model("embedded"), policy.rules)
    texts = rollout.input_ids, rollout.attention_mask, rollout.completion_mask
    difference = policy.evaluate(*texts).logprobs - reference.evaluate(*texts).logprobs
    return difference.sum(1).mean().item()
