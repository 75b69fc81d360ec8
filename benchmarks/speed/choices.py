"""What each choice in the agents' code gains: what is done, against what it replaced.

The sizes are those of a rollout of 64 episodes with the embedded models, and of an update by
minibatches of 16.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from speed import models
from speed.timing import result, side_by_side
from textgym.agents import PPO, LanguageModelPolicy
from textgym.agents.policy import sample
from textgym.models.incremental import _GrowingLayer
from textgym.wrappers.vector import CreditAssignment

__all__ = ["measure"]


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Time of what was replaced ÷ time of what is done; more is better.

    Args:
        quick: Few rounds, for tests.
    """
    rounds, seconds = (2, 0.0) if quick else (15, 0.1)
    rows = []
    for case, quantity, before, now in _pairs():
        times = side_by_side({"before": before, "now": now}, rounds, min_seconds=seconds)
        ratio = times.ratio("before", "now")
        rows.append(result("choices", case, quantity, ratio, seconds=times.seconds))
    rows.append(_iterations(2 if quick else 7))
    return rows


def _pairs() -> list[tuple[str, str, Any, Any]]:
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(64, 4096, generator=generator).log_softmax(dim=1)
    pairs = [
        (
            "sampling, 64 x 4,096 tokens",
            "torch.multinomial / one number and the cumulative sum",
            lambda: torch.multinomial(logprobs.exp(), 1, generator=generator),
            lambda: sample(logprobs, generator),
        ),
        (
            "keys and values, 64 rows from 8 to 40 tokens, one layer",
            "concatenation / buffers with room",
            lambda: _grow(DynamicLayer()),
            lambda: _grow(_GrowingLayer(*_states(0), 64)),
        ),
    ]
    for name, queries, keys in (("sampling", 1, 32), ("training", 25, 25)):
        batch = 64 if name == "sampling" else 16
        pairs.append(
            (
                f"attention in {name}, {batch} x {queries} of {keys} tokens, 4 heads of 64",
                "bfloat16 / float32 with conversions",
                _Attention(batch, queries, keys, torch.bfloat16),
                _Attention(batch, queries, keys, torch.float32),
            )
        )
    policy = LanguageModelPolicy(copy.deepcopy(models.language_model("embedded")))
    ids = torch.randint(3, 4096, (16, 25), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def learn(entropy_gradient: bool) -> None:
        said = policy.evaluate(ids, mask, mask[:, 9:], entropy_gradient)
        loss = said.logprobs.mean()
        if entropy_gradient:
            loss = loss - 0.01 * said.entropy.mean()
        loss.backward()
        policy.zero_grad()

    pairs.append(
        (
            "forward and backward, 16 x 25 tokens",
            "entropy with gradient / without",
            lambda: learn(True),
            lambda: learn(False),
        )
    )
    return pairs


def _states(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(64, 4, num_tokens, 64), torch.ones(64, 4, num_tokens, 64)


@torch.inference_mode()
def _grow(layer: DynamicLayer) -> None:
    cache = DynamicCache()
    cache.layers = [layer]
    for num_tokens in (8, *[1] * 32):
        cache.update(*_states(num_tokens), 0)


class _Attention:
    """Attention of bfloat16 states in a dtype; forward and, in training, backward."""

    def __init__(self, batch: int, queries: int, keys: int, dtype: torch.dtype) -> None:
        self._dtype, self._trains = dtype, queries > 1
        self._states = [
            torch.randn(batch, 4, num, 64, dtype=torch.bfloat16, requires_grad=self._trains)
            for num in (queries, keys, keys)
        ]
        self._mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool).tril(keys - queries)

    def __call__(self) -> None:
        states = [one.to(self._dtype) for one in self._states]
        output = scaled_dot_product_attention(*states, attn_mask=self._mask).bfloat16()
        if self._trains:
            output.backward(torch.ones_like(output))


def _iterations(rounds: int) -> dict[str, Any]:
    """A whole iteration of PPO in either dtype."""
    agents = {}
    for dtype in ("float32", "bfloat16"):
        envs = gym.make_vec("ABC-RLHF-v0", 16, dtype=dtype, autoreset_mode=AutoresetMode.DISABLED)
        agents[dtype] = PPO(
            "embedded",
            CreditAssignment(envs, "attention"),
            dtype=None if dtype == "float32" else dtype,
            log_dir=tempfile.mkdtemp(),
        )
    functions = {dtype: lambda agent=agent: agent.learn(1) for dtype, agent in agents.items()}
    times = side_by_side(functions, rounds, min_seconds=0.0)
    return result(
        "choices",
        "an iteration of PPO with ABC, 16 episodes, minibatches of 4",
        "float32 / bfloat16",
        times.ratio("float32", "bfloat16"),
        seconds=times.seconds,
    )
