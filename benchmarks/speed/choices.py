"""What some choices in the agents' code gain over what they replaced.

The sizes are those of a rollout of 64 episodes with the embedded models, and of an update by
minibatches of 16.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from harness.profiling import peak_memory
from harness.timing import Comparison, side_by_side
from speed.ratios import result
from textgym.agents import PPO, ActionRules
from textgym.agents.distribution import action_logprobs, masked_entropy, masked_logprobs, sample
from textgym.models.incremental.cache import GrowingLayer
from textgym.models.kernels import fast_sdpa
from textgym.wrappers.vector import CreditAssignment

__all__ = ["measure"]


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """Time of what was replaced over time of what replaced it; more is better.

    Args:
        quick: Few rounds, for tests.
    """
    rounds, seconds = (2, 0.0) if quick else (15, 0.1)
    rows = []
    for case, quantity, before, now in _pairs():
        times = side_by_side({"before": before, "now": now}, rounds, min_seconds=seconds)
        ratio = times.ratio("before", "now")
        rows.append(result("choices", case, quantity, ratio, seconds=times.seconds))
        if isinstance(now, _Logprobs):
            memory = peak_memory(before) / peak_memory(now)
            rows.append(result("choices", case, f"peak memory: {quantity}", (memory,) * 3))
    rows.append(_iterations(2 if quick else 7))
    rows += [_memory(*case, quick) for case in (("embedded", 32, 16), ("gpt2-small", 128, 96))]
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
            lambda: _grow(GrowingLayer(*_states(0), 64)),
        ),
    ]
    for name, batch, queries, keys, dtype in (
        ("sampling", 64, 1, 32, torch.float32),
        ("sampling", 64, 1, 32, torch.bfloat16),
        ("training", 16, 25, 25, torch.bfloat16),
    ):
        case = f"attention in {name}, {batch} x {queries} of {keys} tokens, 4 heads of 64, {dtype}"
        library, ours = (
            _Attention(function, batch, queries, keys, dtype)
            for function in (sdpa_attention_forward, fast_sdpa)
        )
        pairs.append((case.replace("torch.", ""), "PyTorch's fused kernel / ours", library, ours))
    for batch, num_steps, vocab_size in ((16, 16, 4096), (4, 96, 50257)):
        logits = torch.randn(batch, num_steps, vocab_size, generator=generator).bfloat16()
        pairs.append(
            (
                f"log-probabilities and entropy, {batch} x {num_steps} x {vocab_size:,}, bfloat16",
                "of all tokens, then gathered / of the chosen ones, piece by piece",
                _Logprobs(logits, piece_by_piece=False),
                _Logprobs(logits, piece_by_piece=True),
            )
        )
    return pairs


class _Logprobs:
    """Log-probabilities and entropies, forward and backward."""

    def __init__(self, logits: torch.Tensor, piece_by_piece: bool) -> None:
        self._logits = logits.requires_grad_()
        self._actions = logits.detach().argmin(dim=-1)
        self._steps = torch.arange(logits.shape[1])
        self._piece_by_piece = piece_by_piece

    def __call__(self) -> None:
        rules = ActionRules(self._logits.shape[-1], eos_token_id=2, min_new_tokens=8)
        if self._piece_by_piece:
            logprobs, _ = action_logprobs(self._logits, self._actions, self._steps, rules)
        else:
            all_logprobs = masked_logprobs(self._logits, self._steps, rules)
            logprobs = all_logprobs.gather(-1, self._actions[..., None])
            with torch.no_grad():
                masked_entropy(all_logprobs)
        logprobs.sum().backward()
        self._logits.grad = None


def _states(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(64, 4, num_tokens, 64), torch.ones(64, 4, num_tokens, 64)


@torch.inference_mode()
def _grow(layer: DynamicLayer) -> None:
    cache = DynamicCache()
    cache.layers = [layer]
    for num_tokens in (8, *[1] * 32):
        cache.update(*_states(num_tokens), 0)


class _Attention:
    """Attention of some function; forward and, in training, backward."""

    def __init__(
        self,
        function: Callable[..., Any],
        batch: int,
        queries: int,
        keys: int,
        dtype: torch.dtype,
    ) -> None:
        self._function, self._trains = function, queries > 1
        self._states = [
            torch.randn(batch, 4, num, 64, dtype=dtype, requires_grad=self._trains)
            for num in (queries, keys, keys)
        ]
        self._mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool).tril(keys - queries)

    def __call__(self) -> None:
        output, _ = self._function(torch.nn.Identity(), *self._states, self._mask)
        if self._trains:
            output.backward(torch.ones_like(output))


def _iterations(rounds: int) -> dict[str, Any]:
    """A whole iteration of PPO in either dtype."""
    agents = {}
    for dtype in ("float32", "bfloat16"):
        envs = gym.make_vec("ABC-RLHF-v0", 16, dtype=dtype, autoreset_mode=AutoresetMode.DISABLED)
        agents[dtype] = PPO(
            "embedded",
            CreditAssignment(envs, "abc"),
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


def _memory(name: str, num_tokens: int, num_steps: int, quick: bool) -> dict[str, Any]:
    """A gradient step, with freed memory given back to the system or kept by the process."""
    seconds: dict[str, list[float]] = {"given back": [], "kept": []}
    command = [sys.executable, "-m", "speed.step", name, str(num_tokens), str(num_steps)]
    size = "quick" if quick else "full"
    for _ in range(1 if quick else 4):
        for way, of_way in seconds.items():
            done = subprocess.run(
                [*command, "kept" if way == "kept" else "returned", size],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=True,
            )
            of_way.append(float(done.stdout))
    return result(
        "choices",
        f"a gradient step, {name}, 8 x {num_tokens} tokens, bfloat16",
        "freed memory given back / kept",
        Comparison(seconds).ratio("given back", "kept"),
        seconds=seconds,
    )
