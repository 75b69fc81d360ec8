"""How many tokens per second are left after each stage of an iteration.

Throughput means different things. So it is given in stages, for PPO on ``ABC-RLHF-v0`` with the
embedded models and 16 rows: the environment's steps with random tokens and without scores; the same
with scores; a rollout, in which a policy chooses the tokens; and a whole iteration, update
included. Each is compared with the stage before. The last row is the environment's own share of an
iteration.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from harness.timing import Stopwatch, side_by_side
from speed import models
from speed.ratios import Row, result
from speed.textgym_side import NUM_ENVS, Textgym, make_envs
from textgym.agents import collect_episodes
from textgym.models import Completions, LeftAligned, ScoredCompletions

__all__ = ["measure"]

_STAGES = (
    "steps of the environment with random tokens",
    "the same with scores",
    "a rollout",
    "an iteration of PPO",
)


def measure(quick: bool = False) -> list[Row]:
    """Tokens per second of each stage ÷ those of the stage before.

    Args:
        quick: Few episodes and rounds, for tests.
    """
    num_envs = 4 if quick else NUM_ENVS
    return [
        row
        for bfloat16 in (
            [False] if quick else [dtype == torch.bfloat16 for dtype in models.dtypes()]
        )
        for row in _stages(num_envs, bfloat16, rounds=2 if quick else 9)
    ]


def _stages(num_envs: int, bfloat16: bool, rounds: int) -> list[Row]:
    threads, dtype = torch.get_num_threads(), "bfloat16" if bfloat16 else None
    side = Textgym(bfloat16=bfloat16, threads=threads, episodes=num_envs, minibatch_size=4)
    agent, envs, unscored = side.agent, make_envs(num_envs, dtype), make_envs(num_envs, dtype)
    task: Any = unscored.unwrapped.task  # type: ignore[attr-defined]
    task.score = _zero_scores
    generator = torch.Generator().manual_seed(0)

    def rollout() -> int:
        episodes = collect_episodes(agent.policy, envs, num_envs, generator)
        return int(episodes.episode_lengths.sum())

    def iteration() -> int:
        before = agent.num_timesteps
        side.run(1)
        return agent.num_timesteps - before

    counted = {
        name: _Counted(function)
        for name, function in zip(
            _STAGES,
            (lambda: _random_steps(unscored), lambda: _random_steps(envs), rollout, iteration),
            strict=True,
        )
    }
    env: Any = agent.env
    env.step, env.reset = step, reset = Stopwatch(env.step), Stopwatch(env.reset)
    times = side_by_side(counted, rounds, min_seconds=0.0)
    case = f"embedded {dtype or 'float32'}, {num_envs} rows of 8 to 16 tokens"
    rows = []
    for before, name in pairwise(_STAGES):
        more = counted[name].mean / counted[before].mean
        value, low, high = (more * bound for bound in times.ratio(before, name))
        detail = {
            "tokens_per_second": {
                stage: round(counted[stage].mean / times.median(stage)) for stage in (before, name)
            },
            "seconds": {stage: times.seconds[stage] for stage in (before, name)},
        }
        rows.append(
            result("stages", case, f"tokens/s: {name} / {before}", (value, low, high), **detail)
        )
    seconds = (step.seconds + reset.seconds) / len(counted[_STAGES[-1]].tokens)
    share = seconds / times.median(_STAGES[-1])
    quantity = "seconds: the environment with its scores / an iteration of PPO"
    return [*rows, result("stages", case, quantity, (share, share, share))]


def _random_steps(envs: VectorEnv) -> int:
    """Play one episode per row; returns the number of tokens."""
    envs.reset(seed=0)
    rng = np.random.default_rng(0)
    is_playing, count = np.ones(envs.num_envs, dtype=np.bool_), 0
    while is_playing.any():
        count += int(is_playing.sum())
        _, _, terminated, truncated, _ = envs.step(rng.integers(5, 1000, envs.num_envs))
        is_playing &= ~(terminated | truncated)
    return count


def _zero_scores(completions: Completions, _: Any) -> ScoredCompletions:
    """What the reward model would return, without reading the texts."""
    aligned = LeftAligned.of(completions)
    return ScoredCompletions(
        aligned.input_ids,
        aligned.attention_mask,
        completions.completion_mask.gather(1, aligned.order),
        score=torch.zeros(len(completions)),
    )


class _Counted:
    """A function that returns a number of tokens, and remembers them all."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.tokens: list[int] = []

    def __call__(self) -> None:
        self.tokens.append(self._function())

    @property
    def mean(self) -> float:
        """Tokens per call."""
        return float(np.mean(self.tokens))
