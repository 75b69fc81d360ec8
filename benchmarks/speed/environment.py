"""Steps per second of the batched environment, beside Gymnasium's SyncVectorEnv.

Three questions, each measured side by side:

- What does a token cost? Completions of 128 tokens, from reset to the last step but one, so no
  episode ends and the reward model is never called. The batched environment is compared with
  ``SyncVectorEnv`` of the single one, and with ``SyncVectorEnv`` of CartPole-v1 to show what is
  usual.
- What does a score cost? Completions of 8 to 16 tokens, with their ends and new starts. The reward
  model takes most of the time. The batched environment calls it once per step, the others once per
  episode.
- What does a dense reward cost? ``AttentionShaping`` reads one new token per row and step. It is
  compared with the same wrapper reading the whole texts at every step, as it must with some reward
  models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from harness.timing import Comparison, side_by_side
from speed.ratios import result
from textgym.envs import TextGenerationEnv, TextGenerationVectorEnv
from textgym.models import (
    Completions,
    Readout,
    RewardModel,
    ScoredCompletions,
    load_reward_model,
    load_tokenizer,
)
from textgym.prompts import load_prompts
from textgym.wrappers.vector import AttentionShaping

__all__ = ["measure"]

PART = "environment"
SEED = 0


@dataclass(frozen=True)
class _Sizes:
    """How much is measured."""

    tokens_only: tuple[int, ...] = (1, 16, 256, 1024)  # numbers of rows
    scored: tuple[int, ...] = (16, 256)  # numbers of rows
    shaped: tuple[int, ...] = (16, 128)  # tokens of a completion, in 16 rows
    shaped_rows: int = 16
    long_tokens: int = 128
    scored_steps: int = 34  # at least two whole episodes in every row
    rounds: int = 7
    min_seconds: float = 0.2


_QUICK = _Sizes(
    tokens_only=(1, 4),
    scored=(4,),
    shaped=(4,),
    shaped_rows=2,
    long_tokens=8,
    scored_steps=10,
    rounds=2,
    min_seconds=0.0,
)


class _Rereading(RewardModel):
    """A reward model with its own ``read``, so that wrappers cannot read texts token by token."""

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Read whole texts, as the base class does."""
        return super().read(completions, readouts)


def measure(quick: bool) -> list[dict[str, Any]]:
    """Measure steps per second; see the module.

    Args:
        quick: Small sizes, for a test.
    """
    sizes = _QUICK if quick else _Sizes()
    tokenizer = load_tokenizer("embedded")
    shared = {  # loaded once, also for the many single environments
        "tokenizer": tokenizer,
        "reward_model": load_reward_model("embedded", tokenizer),
        "prompts": load_prompts("embedded", tokenizer),
    }
    rows = []
    for num_envs in sizes.tokens_only:
        rows += _tokens_only(num_envs, sizes, shared)
    rows += [_scored(num_envs, sizes, shared) for num_envs in sizes.scored]
    rows += [_shaped(num_tokens, sizes, shared) for num_tokens in sizes.shaped]
    return rows


def _tokens_only(num_envs: int, sizes: _Sizes, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """New episodes, and steps that append a token and nothing else."""
    budget: dict[str, Any] = {
        "min_new_tokens": sizes.long_tokens,
        "max_new_tokens": sizes.long_tokens,
    }
    batched = TextGenerationVectorEnv(num_envs, **shared, **budget)
    envs = {
        "batched": batched,
        "SyncVectorEnv": _in_a_loop(num_envs, **shared, **budget),
        "CartPole-v1": gym.make_vec("CartPole-v1", num_envs, vectorization_mode="sync"),
    }
    num_steps = sizes.long_tokens - 1  # The last one would end the episodes.
    tokens = _legal_tokens(batched, num_steps)
    pushes = np.random.default_rng(SEED).integers(0, 2, tokens.shape)
    actions = {"batched": tokens, "SyncVectorEnv": tokens, "CartPole-v1": pushes}
    timed = side_by_side(
        {name: _play(env, actions[name]) for name, env in envs.items()},
        sizes.rounds,
        min_seconds=sizes.min_seconds,
    )
    case = f"tokens only, {num_envs} {'row' if num_envs == 1 else 'rows'}"
    detail: dict[str, Any] = {
        "steps_per_second": _per_second(timed, tokens.size),
        "seconds_per_round": timed.seconds,
        "steps_per_round": tokens.size,
        "max_length": batched.max_length,
    }
    return [
        result(
            PART,
            case,
            "batched / SyncVectorEnv of the single environment, steps per second",
            timed.ratio("SyncVectorEnv", "batched"),
            ">= 20" if num_envs == 256 else None,
            **detail,
        ),
        result(
            PART,
            case,
            "batched / SyncVectorEnv of CartPole-v1, steps per second",
            timed.ratio("CartPole-v1", "batched"),
            **detail,
        ),
    ]


def _scored(num_envs: int, sizes: _Sizes, shared: dict[str, Any]) -> dict[str, Any]:
    """Short episodes, with their scores and the starts of the next ones."""
    batched = TextGenerationVectorEnv(num_envs, **shared)
    envs = {"batched": batched, "SyncVectorEnv": _in_a_loop(num_envs, **shared)}
    tokens = _legal_tokens(batched, sizes.scored_steps)
    timed = side_by_side(
        {name: _play(env, tokens) for name, env in envs.items()},
        sizes.rounds,
        min_seconds=0.0,
    )
    return result(
        PART,
        f"episodes of {batched.min_new_tokens} to {batched.max_new_tokens} tokens with their "
        f"scores, {num_envs} rows",
        "batched / SyncVectorEnv of the single environment, steps per second",
        timed.ratio("SyncVectorEnv", "batched"),
        steps_per_second=_per_second(timed, tokens.size),
        seconds_per_round=timed.seconds,
        steps_per_round=tokens.size,
    )


def _shaped(num_tokens: int, sizes: _Sizes, shared: dict[str, Any]) -> dict[str, Any]:
    """Steps with the reward of attention-weighted shaping."""
    reward_model: RewardModel = shared["reward_model"]
    models = {
        "one token per step": reward_model,
        "whole texts": _Rereading(reward_model.model, reward_model.tokenizer),
    }
    envs = {
        name: AttentionShaping(
            TextGenerationVectorEnv(
                sizes.shaped_rows,
                **{**shared, "reward_model": model},
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
            )
        )
        for name, model in models.items()
    }
    base: Any = envs["whole texts"].unwrapped
    tokens = _legal_tokens(base, num_tokens - 1)
    rewards, read = {}, {}
    for name, env in envs.items():
        with _counting_tokens(reward_model) as counts:
            rewards[name] = _play(env, tokens)()
        read[name] = sum(counts) / len(tokens)
    # Both must pay the same, or the comparison is between different things.
    np.testing.assert_allclose(rewards["one token per step"], rewards["whole texts"], atol=1e-3)
    timed = side_by_side(
        {name: _play(env, tokens) for name, env in envs.items()},
        sizes.rounds,
        min_seconds=0.0,
    )
    return result(
        PART,
        f"AttentionShaping, completions of {num_tokens} tokens, {sizes.shaped_rows} rows",
        "one token per step / whole texts, steps per second",
        timed.ratio("whole texts", "one token per step"),
        steps_per_second=_per_second(timed, tokens.size),
        tokens_read_per_step_of_all_rows=read,
        seconds_per_round=timed.seconds,
        steps_per_round=tokens.size,
    )


def _in_a_loop(num_envs: int, **arguments: Any) -> SyncVectorEnv:
    """Single environments without the wrappers of ``gym.make``, which would slow them down."""
    return SyncVectorEnv([lambda: TextGenerationEnv(**arguments)] * num_envs)


def _legal_tokens(envs: TextGenerationVectorEnv, num_steps: int) -> np.ndarray:
    """Random tokens that end no episode, int64 (num_steps, num_envs)."""
    legal = np.flatnonzero(envs.task.action_mask(0))
    return np.random.default_rng(SEED).choice(legal, (num_steps, envs.num_envs))


def _play(envs: VectorEnv, actions: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that starts new episodes, takes all actions and returns the rewards."""
    envs.reset(seed=SEED)

    def play() -> np.ndarray:
        envs.reset()
        return np.array([envs.step(of_step)[1] for of_step in actions])

    return play


def _per_second(timed: Comparison, num_steps: int) -> dict[str, int]:
    """Steps of single rows per second, the median over rounds."""
    return {name: round(num_steps / timed.median(name)) for name in timed.seconds}


@contextmanager
def _counting_tokens(reward_model: RewardModel) -> Iterator[list[int]]:
    """A list of how many tokens each pass of the reward model reads, padding included."""
    counts: list[int] = []

    def count(_module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        counts.append(keywords["input_ids"].numel())

    handle = reward_model.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()
