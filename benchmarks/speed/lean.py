"""Reading the newest token without the library's forward pass, against reading it with it.

``IncrementalLanguageModel`` reads texts that grow by one token. Both sides are that class; one is
denied :class:`textgym.models.incremental.lean.LeanDecoder`. The second part is what users of other
libraries step: the environment with features of a language model, batched, and one by one in
Gymnasium's ``SyncVectorEnv``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

from harness.timing import side_by_side
from speed import models
from speed.ratios import Row, result
from textgym.models.incremental import IncrementalLanguageModel
from textgym.models.incremental.lean import LeanDecoder
from textgym.models.kernels import fast_attention

__all__ = ["measure"]

NUM_TOKENS = 32
NUM_STEPS = 34
"""Steps of the environment: at least two whole episodes in every row."""


def measure(quick: bool = False) -> list[Row]:
    """Time with the library's forward pass over time without it; more is better.

    Args:
        quick: Small sizes and few rounds, for tests.
    """
    rounds = 2 if quick else 7
    rows = []
    for name, batches in (("embedded", (1, 4, 16, 64)), ("gpt2-small", (1, 16))):
        for dtype in models.dtypes():
            model = copy.deepcopy(models.language_model(name, quick))
            model = model.to(dtype)  # type: ignore[arg-type]
            rows += [_tokens(name, model, batch, rounds) for batch in batches[: 1 if quick else 4]]
    for mode, batches in ((None, (4, 16, 64)), ("sync", (4, 16))):
        rows += [_features(mode, batch, rounds) for batch in batches[: 1 if quick else 3]]
    return rows


def _tokens(name: str, model: Any, batch: int, rounds: int) -> Row:
    prompts = models.texts(batch, 8, 8).input_ids.tolist()
    new = models.texts(1, NUM_TOKENS).input_ids[0].tolist()

    def reading(reader: IncrementalLanguageModel) -> Callable[[], None]:
        def read() -> None:
            reader.read(prompts)
            for end in range(1, NUM_TOKENS + 1):
                reader.read([[*prompt, *new[:end]] for prompt in prompts])

        return read

    with torch.no_grad(), fast_attention(model):
        with mock.patch.object(LeanDecoder, "knows", return_value=False):
            with_library = IncrementalLanguageModel(model)
        lean = IncrementalLanguageModel(model)
        assert lean.is_lean
        assert not with_library.is_lean
        sides = {"library": reading(with_library), "lean": reading(lean)}
        times = side_by_side(sides, rounds, min_seconds=0.0)
    dtype = str(model.dtype).removeprefix("torch.")
    return result(
        "lean",
        f"{name} {dtype}, {batch} {'text' if batch == 1 else 'texts'} of 8 to 40 tokens",
        "time: the library's forward pass / lean, one token at a time",
        times.ratio("library", "lean"),
        milliseconds_per_token={
            side: round(1e3 * times.median(side) / NUM_TOKENS, 2) for side in sides
        },
        seconds=times.seconds,
    )


def _features(mode: str | None, num_envs: int, rounds: int) -> Row:
    def make() -> VectorEnv:
        envs = gym.make_vec("ABC-RLHF-Features-v0", num_envs, vectorization_mode=mode)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        return envs

    def stepping(envs: VectorEnv) -> Callable[[], None]:
        def step() -> None:
            for _ in range(NUM_STEPS):
                envs.step(envs.action_space.sample())

        return step

    with mock.patch.object(LeanDecoder, "knows", return_value=False):
        before = make()
    sides = {"library": stepping(before), "lean": stepping(make())}
    times = side_by_side(sides, rounds, min_seconds=0.0)
    kind = "SyncVectorEnv" if mode else "batched"
    return result(
        "lean",
        f"ABC-RLHF-Features-v0, {kind}, {num_envs} rows",
        "steps per second: lean / the library's forward pass",
        times.ratio("library", "lean"),
        ">= 2",
        steps_per_second={side: round(num_envs * NUM_STEPS / times.median(side)) for side in sides},
        seconds=times.seconds,
    )
