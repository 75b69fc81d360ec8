"""textgym's side of the comparison with trl, and how the two take turns."""

from __future__ import annotations

import sys
import tempfile
from typing import Any, Protocol

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from textgym.agents import AGENTS
from textgym.credit import get_credit_assigner
from textgym.credit.start import Start
from textgym.wrappers.vector import CreditAssignment

__all__ = [
    "BOTH_SIDES",
    "NUM_ENVS",
    "Rows",
    "Side",
    "Textgym",
    "make_envs",
    "take_turns",
    "thread_numbers",
]

NUM_ENVS = 16
"""Episodes per iteration, on both sides."""
BOTH_SIDES: dict[str, float] = {"learning_rate": 5e-5, "kl_coef": 0.1, "kl_target": 6.0}
"""Hyperparameters of PPO on both sides, where they differ from textgym's defaults."""

Rows = list[dict[str, float]]


class Side(Protocol):
    """One side of the comparison."""

    def run(self, iterations: int) -> Rows:
        """Train on; a row per iteration with its ``seconds``, ``score``, ``kl`` and ``length``."""


class Textgym:
    """A bundled agent of textgym.

    Args:
        agent: Its name.
        credit: Name of the credit assigner.
        start: What credit is measured from.
        bfloat16: Autocast of the policy, and dtype of the reward model.
        threads: PyTorch's threads while it runs.
        episodes: Of an iteration, all in one batch.
        **hyperparameters: Of the agent, beside those of both sides.
    """

    def __init__(
        self,
        agent: str = "ppo",
        credit: str = "sparse",
        start: Start = "zero",
        bfloat16: bool = False,
        threads: int = 1,
        episodes: int = NUM_ENVS,
        **hyperparameters: Any,
    ) -> None:
        dtype = "bfloat16" if bfloat16 else None
        envs = make_envs(episodes, dtype)
        self.threads = threads
        self._logs = tempfile.TemporaryDirectory()
        self.agent = AGENTS[agent](
            "embedded",
            CreditAssignment(envs, get_credit_assigner(credit, start=start)),
            episodes_per_iteration=episodes,
            dtype=dtype,
            log_dir=self._logs.name,
            **BOTH_SIDES | hyperparameters,
        )

    def run(self, iterations: int) -> Rows:
        """See :class:`Side`."""
        history = self.agent.history
        done, threads = len(history), torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            self.agent.learn(
                sys.maxsize,  # the callback ends it
                callback=lambda row: row["time/iteration"] < done + iterations,
            )
        finally:
            torch.set_num_threads(threads)
        ends = [0.0, *(row["time/seconds"] for row in history)]
        return [
            {
                "seconds": ends[done + i + 1] - ends[done + i],
                "score": row["rollout/score_mean"],
                "kl": row["rollout/kl"],
                "length": row["rollout/episode_length"],
            }
            for i, row in enumerate(history[done:])
        ]


def make_envs(num_envs: int, dtype: str | None = None) -> VectorEnv:
    """The environment that both sides take their prompts from; its rows wait when they end."""
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, dtype=dtype
    )


def take_turns(sides: dict[str, Side], rounds: int, iterations: int) -> dict[str, list[Rows]]:
    """Blocks of iterations in turn, in alternating order; by side, the rows of each round."""
    rows: dict[str, list[Rows]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            rows[name].append(sides[name].run(iterations))
    return rows


def thread_numbers() -> list[int]:
    """The numbers of threads that are tried."""
    return sorted({1, torch.get_num_threads()})
