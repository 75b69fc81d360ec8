"""What the agents of agents.py have in common: their environment, and the scores they note."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gymnasium.vector import AutoresetMode, VectorEnv

import textgym  # noqa: F401  (registers the environments)
from reports.agents import ABC, CHUNK, SHAPING
from textgym.wrappers.vector import AttentionShaping, CreditAssignment

__all__ = ["FEATURES", "NUM_TOKENS", "TOKENS", "Progress", "make_envs"]

NUM_TOKENS = 16
FEATURES = "ABC-RLHF-Features-v0"
"""Features of the embedded language model, and its 16 likeliest tokens to choose from."""
TOKENS = "ABC-RLHF-v0"
"""Tokens, and all of them to choose from."""


def make_envs(env_id: str, num_envs: int, reward: str) -> VectorEnv:
    """The task in bfloat16, paid by one of the rewards.

    Args:
        env_id: :data:`FEATURES` or :data:`TOKENS`.
        num_envs: Number of rows, which wait for a reset when they have finished.
        reward: "sparse"; "causal shaping", paid at every step; or "ABC", handed over at the end.
    """
    arguments: dict[str, Any] = {
        "min_new_tokens": NUM_TOKENS,
        "max_new_tokens": NUM_TOKENS,
        "dtype": "bfloat16",
    }
    if env_id == FEATURES:  # the defaults of the time when the benchmark ran
        arguments |= {"k": 16, "describe_actions": False}
    envs = gym.make_vec(env_id, num_envs, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    if reward == SHAPING:
        return AttentionShaping(envs)
    return CreditAssignment(envs, "abc") if reward == ABC else envs


@dataclass
class Progress:
    """Scores of the episodes, in the order in which they ended."""

    scores: list[float] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of processor time
    kl: float = float("nan")  # to the reference policy, at the end
    started: float = field(default_factory=time.process_time)

    def add(self, timesteps: int, scores: list[float]) -> None:
        """Note episodes that ended after this many timesteps."""
        self.scores += scores
        self.timesteps += [timesteps] * len(scores)
        self.seconds += [time.process_time() - self.started] * len(scores)

    def rows(self) -> pd.DataFrame:
        """A row per chunk of episodes; the KL stands in the last one."""
        frame = pd.DataFrame(
            {"timesteps": self.timesteps, "seconds": self.seconds, "score": self.scores}
        )
        chunk = np.arange(len(frame)) // CHUNK
        rows = frame.groupby(chunk).agg({"timesteps": "max", "seconds": "max", "score": "mean"})
        rows["episodes"] = frame.groupby(chunk).size()
        rows["kl"] = np.nan
        rows.loc[rows.index[-1], "kl"] = self.kl
        return rows.round(4)
