"""The suites that ship: the figures of the paper with statistics and controls."""

from __future__ import annotations

from textgym.errors import InvalidArgumentError

from .methods import FRONTIER, FRONTIER_KL_COEFS
from .plan import Suite

__all__ = ["SUITES", "find_suite"]

_MAIN = (
    "sparse",
    "sparse, λ = 1",
    "uniform",
    "ABC",
    "ABC, β = 1",
    "ABC-D",
    "prefix score",
    "attention-weighted",
    "random",
    "shuffled ABC",
    "position",
)
_SWEEP = tuple(f"β = {tenth / 10:g} (published)" for tenth in range(11))

SUITES = {
    "main": Suite(
        question="Does attention-based credit learn faster than sparse reward, and is it the "
        "attention? Each method as tuned.",
        tasks=("8-16",),
        methods=(*_MAIN, "RLOO, prefix score"),
        baseline="sparse",
    ),
    "published": Suite(
        question="The same with the settings of the paper.",
        tasks=("8-16",),
        methods=tuple(f"{name} (published)" for name in _MAIN),
        baseline="sparse (published)",
    ),
    "beta": Suite(
        question="How much of the score should ABC redistribute, with the settings of the paper?",
        tasks=("8-16",),
        methods=_SWEEP,
        baseline=_SWEEP[0],
        seeds=5,
        iterations=80,
    ),
    "length": Suite(
        question="Is a dense reward worth more, the longer the completion?",
        tasks=("8-16", "20-30", "40-60", "90-110", "140-160"),
        methods=("sparse", "sparse, λ = 1", "uniform", "ABC", "prefix score"),
        baseline="sparse",
        seeds=5,
    ),
    "frontier": Suite(
        question="What does each method score at equal KL? Three weights of the KL penalty each.",
        tasks=("8-16",),
        methods=tuple(f"{name}, KL {kl:g}" for name in FRONTIER for kl in FRONTIER_KL_COEFS),
        baseline=f"{FRONTIER[0]}, KL {FRONTIER_KL_COEFS[1]:g}",
        seeds=5,
        iterations=80,
    ),
    "leaderboard": Suite(
        question="Which agent and which credit learn best?",
        tasks=("8-16", "140-160", "planted"),
        methods=(
            "sparse",
            "sparse, λ = 1",
            "ABC",
            "prefix score",
            "RLOO",
            "GRPO",
            "RLOO, prefix score",
            "SB3's PPO",
            "SB3's MaskablePPO",
            "SB3's A2C",
            "SB3's PPO, prefix score",
        ),
        baseline="sparse",
        seeds=5,
        iterations=50,
    ),
}
"""By name. Each suite's tables and figures compare its methods with its baseline."""


def find_suite(name: str) -> Suite:
    """Look up a suite.

    Raises:
        InvalidArgumentError: If there is none of this name.
    """
    if name not in SUITES:
        raise InvalidArgumentError("suite", name, f"must be one of {', '.join(SUITES)}")
    return SUITES[name]
