"""How do time and memory grow with the batch, the length and the model?

Three things are measured. ``read`` is a pass of the reward model with attention row and prefix
scores. ``rollout`` samples completions in the environment, which scores them at the end. ``update``
is one gradient step of PPO on the whole batch. One axis grows at a time, from its smallest to its
largest value, and the ratios say how much this increases

- the time per token: of all tokens in ``read`` and ``update``, of new ones in ``rollout``;
- the operations per token, by formula (see :mod:`speed.operations`): how the time would grow if
  only matrix products took time. Along the length this is attention, which is quadratic;
- the memory per text: the peak of tensors beyond the models, over the size of the batch.

If the time grows less than the operations, calls have a constant part that larger ones share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

import textgym  # noqa: F401  (registers the environments)
from harness.profiling import peak_memory
from harness.timing import side_by_side
from speed import models
from speed.operations import forward_operations, update_operations
from speed.ratios import result
from speed.update import Updater, random_episodes
from textgym.agents import LanguageModelPolicy, collect_episodes
from textgym.agents.environment import action_rules
from textgym.models import AttentionRow, PrefixScores

__all__ = ["measure"]

PROMPT = "The film was"


@dataclass(frozen=True)
class Point:
    """A model, a number of texts, and how many tokens are new in each."""

    model: str
    batch: int
    new_tokens: int


AXES: dict[str, list[Point]] = {
    "{0.batch} to {1.batch} texts": [Point("llama-4x256", n, 64) for n in (4, 16, 64)],
    "{0.new_tokens} to {1.new_tokens} new tokens": [
        Point("llama-4x256", 16, n) for n in (16, 64, 128, 256, 512)
    ],
    "{0.model} to {1.model}": [
        Point(name, 16, 64) for name in ("llama-4x256", "llama-8x256", "gpt2-small")
    ],
}
QUICK: dict[str, list[Point]] = {
    "{0.new_tokens} to {1.new_tokens} new tokens": [Point("llama-4x256", 2, n) for n in (2, 4)],
    "{0.model} to {1.model}": [Point(name, 2, 2) for name in ("llama-4x256", "gpt2-small")],
}


@dataclass(frozen=True)
class Work:
    """What is measured at a point.

    Attributes:
        run: The work.
        num_tokens: How many tokens it handles.
        operations: How many floating-point operations its matrix products take.
    """

    run: Callable[[], object]
    num_tokens: int
    operations: float


def measure(quick: bool = False) -> list[dict]:
    """Growth per axis and kind of work.

    Args:
        quick: Tiny sizes, in seconds.
    """
    rows = []
    for axis, points in (QUICK if quick else AXES).items():
        case = axis.format(points[0], points[-1])
        for kind, prepare in (("read", _read), ("rollout", _rollout), ("update", _update)):
            rows += _grow(case, kind, points, [prepare(point, quick) for point in points], quick)
    return rows


def _grow(case: str, kind: str, points: list[Point], works: list[Work], quick: bool) -> list[dict]:
    names = [f"{p.model}, {p.batch} texts, {p.new_tokens} new tokens" for p in points]
    compared = side_by_side(
        {name: work.run for name, work in zip(names, works, strict=True)},
        rounds=2,
        min_seconds=0.0 if quick else 0.2,
    )
    detail: dict[str, dict[str, Any]] = {}
    for name, point, work in zip(names, points, works, strict=True):
        detail[name] = {
            "milliseconds_per_token": round(1e3 * compared.median(name) / work.num_tokens, 5),
            "operations_per_token": round(work.operations / work.num_tokens),
            "gigaflops": round(work.operations / compared.median(name) / 1e9, 2),
            "megabytes_per_text": round(peak_memory(work.run) / point.batch, 3),
            "seconds": compared.seconds[name],
        }
    first, last = names[0], names[-1]
    tokens = works[-1].num_tokens / works[0].num_tokens
    ratio, low, high = compared.ratio(last, first)
    rows = [
        result(
            "growth", case, f"time per token: {kind}", (ratio / tokens, low / tokens, high / tokens)
        )
    ]
    for quantity, key in (
        ("operations per token", "operations_per_token"),
        ("memory per text", "megabytes_per_text"),
    ):
        growth = detail[last][key] / detail[first][key]
        rows.append(result("growth", case, f"{quantity}: {kind}", (growth,) * 3))
    rows[0]["detail"].update(detail)
    return rows


def _read(point: Point, quick: bool) -> Work:
    reward_model = models.reward_model(point.model, quick)
    texts = models.texts(point.batch, 8 + point.new_tokens)
    batch, num_tokens = texts.input_ids.shape
    return Work(
        lambda: reward_model.read(texts, (AttentionRow(), PrefixScores())),
        batch * num_tokens,
        forward_operations(reward_model.model, batch, num_tokens, read_out=0),
    )


def _rollout(point: Point, quick: bool) -> Work:
    reward_model = models.reward_model(point.model, quick)
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=point.batch,
        prompts=[PROMPT],
        reward_model=reward_model,
        min_new_tokens=point.new_tokens,
        max_new_tokens=point.new_tokens,
        autoreset_mode="Disabled",
    )
    model = models.language_model(point.model, quick)
    policy = LanguageModelPolicy(model, action_rules(envs))
    space: Any = envs.single_observation_space
    batch, num_tokens = point.batch, space["input_ids"].shape[0]
    # With the cache every token but the last is fed once, and attends to those before it.
    sampling = forward_operations(model, batch, num_tokens - 1, point.new_tokens, pairs=0.5)
    return Work(
        lambda: collect_episodes(policy, envs, batch, torch.Generator().manual_seed(0)),
        batch * point.new_tokens,
        sampling + forward_operations(reward_model.model, batch, num_tokens, read_out=0),
    )


def _update(point: Point, quick: bool) -> Work:
    updater = Updater(models.language_model(point.model, quick))
    num_tokens = 8 + point.new_tokens
    episodes = random_episodes(point.batch, num_tokens, point.new_tokens)

    def update() -> None:
        updater.update(episodes)
        updater.optimizer.zero_grad()  # So that no call starts with gradients, which would count.

    return Work(
        update,
        point.batch * num_tokens,
        update_operations(updater.model, point.batch, num_tokens - 1, point.new_tokens),
    )
