"""Seconds and memory of iterations, and the rates of the machine at the same time.

Before each iteration the machine's rates are measured, on the same thread: a matrix product of the
model's shapes, and a copy between large buffers. Whatever else slows the machine down slows them
down, too.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch

from harness.profiling import peak_memory
from textgym.agents.lora import add_lora
from textgym.agents.policy import LanguageModelPolicy
from textgym.memory import keep_freed_memory

from .cases import CASES, FORWARDS, Case
from .models import make_agent, make_model
from .work import Choices

__all__ = ["measure_forward", "measure_forwards", "measure_iterations", "train"]

_BUFFER = 2**26  # numbers of float32: 268 MB, beyond any cache


def train(iterations: int, name: str) -> pd.DataFrame:
    """Measure a case of :data:`CASES`; call it in a fresh process, whose peak memory is read."""
    keep_freed_memory()  # As the command line does.
    return measure_iterations(CASES[name], iterations)


def measure_iterations(case: Case, iterations: int) -> pd.DataFrame:
    """A row per iteration of PPO.

    Args:
        case: What is trained.
        iterations: After two that warm up.

    Returns:
        Columns ``iteration``, ``seconds``, ``gigaflops`` of a matrix product,
        ``gigabytes_per_second`` of a copy, ``start_mib`` of the process before there were models,
        and ``peak_mib`` after the warm-up.
    """
    rows = []
    tiny = replace(case.policy, layers=1, width=64, heads=1, key_heads=1, head_size=64, mlp=64)
    with tempfile.TemporaryDirectory() as folder:
        # Libraries take memory on first use, and tokenizers some, too.
        make_agent(tiny, tiny, case.work, case.choices, folder).learn(1)
        start = _peak_mib()
        agent = make_agent(case.policy, case.policy, case.work, case.choices, folder)
        for _ in range(2):  # From the second one on, the copy before it holds AdamW's moments.
            agent.learn(1)
        peak = _peak_mib()  # before the buffers below
        for iteration in range(1, iterations + 1):
            gigaflops, gigabytes = _product_rate(case), _copy_rate()
            seconds = _seconds(lambda: agent.learn(1))
            rows.append(
                {
                    "iteration": iteration,
                    "seconds": round(seconds, 4),
                    "gigaflops": round(gigaflops, 2),
                    "gigabytes_per_second": round(gigabytes, 2),
                    "start_mib": round(start),
                    "peak_mib": round(peak),
                }
            )
    return pd.DataFrame(rows)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _product_rate(case: Case, repeats: int = 5) -> float:
    """Billions of operations per second: a minibatch's tokens times a matrix of the MLP."""
    rows, inner, columns = case.work.minibatch * case.work.fed, case.policy.width, case.policy.mlp
    dtype = torch.bfloat16 if case.choices.is_bfloat16 else torch.float32
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    number = max(1, round(2e9 / (2 * rows * inner * columns)))

    def products() -> None:
        for _ in range(number):
            torch.mm(a, b.T)

    products()
    seconds = sorted(_seconds(products) for _ in range(repeats))[repeats // 2]
    return 2 * rows * inner * columns * number / seconds / 1e9


def _copy_rate(repeats: int = 3) -> float:
    """Billions of bytes per second, read and written."""
    source, target = torch.ones(_BUFFER), torch.zeros(_BUFFER)
    seconds = sorted(_seconds(lambda: target.copy_(source)) for _ in range(repeats))[repeats // 2]
    return 2 * source.nbytes / seconds / 1e9


def measure_forwards(name: str) -> pd.DataFrame:
    """Measure a case of :data:`FORWARDS`, in a row."""
    return measure_forward(FORWARDS[name])


def measure_forward(case: Case) -> pd.DataFrame:
    """The memory of tensors in a pass over a minibatch, beyond what is kept.

    Args:
        case: What is trained.

    Returns:
        Columns ``forward_megabytes``, the peak of the forward pass, and ``update_megabytes``, the
        peak of forward and backward pass, gradients included.
    """
    policy, work = _policy(case), case.work
    generator = torch.Generator().manual_seed(0)
    shape = work.minibatch, work.prompt + work.steps
    ids = torch.randint(3, case.policy.vocabulary, shape, generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def forward() -> torch.Tensor:
        return policy.evaluate(ids, mask, mask[:, work.prompt :]).logprobs.sum()

    def update() -> None:
        policy.zero_grad()
        forward().backward()
        policy.zero_grad()

    update()  # The first pass makes buffers that stay.
    forwards, updates = peak_memory(forward), peak_memory(update)
    row = {"iteration": 1, "forward_megabytes": round(forwards, 1)}
    return pd.DataFrame([row | {"update_megabytes": round(updates, 1)}])


def _policy(case: Case) -> LanguageModelPolicy:
    choices: Choices = case.choices
    dtype = torch.bfloat16 if choices.is_bfloat16 else None
    model = make_model(case.policy, dtype if dtype and choices.rank else torch.float32)
    if choices.rank:
        add_lora(model, {"r": choices.rank})
    return LanguageModelPolicy(
        model, autocast_dtype=dtype, gradient_checkpointing=choices.recomputes
    )
