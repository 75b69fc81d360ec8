"""What scale.py measures, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import EMBEDDED, SHAPES, Shape
from .work import Choices, Work

__all__ = ["CASES", "FORWARDS", "H100", "LARGE", "Case", "Machine"]


_SHORT = Work(episodes=8, prompt=8, steps=16)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy with a reward model of its own shape, and what is done with it."""

    policy: Shape
    choices: Choices
    work: Work = _SHORT


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine reaches: operations per second, and bytes per second."""

    operations_per_second: float
    bytes_per_second: float


_GPT2, _SMOLLM2 = SHAPES["GPT-2"], SHAPES["SmolLM2-135M"]

CASES: dict[str, Case] = {
    "embedded, float32": Case(policy=EMBEDDED, choices=Choices()),
    "embedded, bfloat16": Case(policy=EMBEDDED, choices=Choices(is_bfloat16=True)),
    "GPT-2, float32": Case(policy=_GPT2, choices=Choices()),
    "GPT-2, bfloat16": Case(policy=_GPT2, choices=Choices(is_bfloat16=True)),
    "GPT-2, float32, checkpointing": Case(policy=_GPT2, choices=Choices(recomputes=True)),
    "SmolLM2-135M, float32, LoRA": Case(policy=_SMOLLM2, choices=Choices(rank=16)),
    "SmolLM2-135M, bfloat16, LoRA": Case(
        policy=_SMOLLM2, choices=Choices(rank=16, is_bfloat16=True)
    ),
}
"""Whole iterations, by name."""

_LONG = Work(episodes=8, prompt=64, steps=64, minibatch=8)

FORWARDS: dict[str, Case] = {
    "GPT-2, float32": Case(policy=_GPT2, choices=Choices(), work=_LONG),
    "GPT-2, float32, checkpointing": Case(
        policy=_GPT2, choices=Choices(recomputes=True), work=_LONG
    ),
    "GPT-2, bfloat16": Case(policy=_GPT2, choices=Choices(is_bfloat16=True), work=_LONG),
    "SmolLM2-135M, float32, LoRA": Case(policy=_SMOLLM2, choices=Choices(rank=16), work=_LONG),
    "SmolLM2-135M, bfloat16, LoRA": Case(
        policy=_SMOLLM2, choices=Choices(rank=16, is_bfloat16=True), work=_LONG
    ),
    "SmolLM2-135M, bfloat16, LoRA, checkpointing": Case(
        policy=_SMOLLM2, choices=Choices(rank=16, is_bfloat16=True, recomputes=True), work=_LONG
    ),
}
"""Single passes over a minibatch of 8 texts of 128 tokens, by name."""

LARGE = Work(episodes=64, prompt=128, steps=128, minibatch=8, is_padded=True)
"""What the tables over sizes assume."""

H100 = Machine(operations_per_second=0.3 * 989e12, bytes_per_second=0.6 * 3.35e12)
"""An H100 SXM, at an assumed 30% of its peak in bfloat16 (989 TFLOP/s, dense) and an assumed 60% of
its bandwidth (3.35 TB/s). Nothing was measured on one. The peaks are those of NVIDIA's data sheet.
"""
