"""What the demo compares, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ENDS", "METHODS", "NUM_ENVS", "NUM_SAMPLES", "SMOOTHING", "Method"]


@dataclass(frozen=True)
class Method:
    """One way to pay the policy, at the settings that a search found best for it.

    Attributes:
        name: Id, in file names and results.
        label: Name for people.
        credit: Id of the credit assigner.
        start: What credit is measured from.
        hyperparameters: Fields of :class:`textgym.agents.PPOConfig`.
    """

    name: str
    label: str
    credit: str
    start: Literal["zero", "prompt"] = "zero"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


METHODS = (
    Method(
        "sparse",
        "sparse reward",
        "sparse",
        "prompt",
        {"learning_rate": 1.4e-4, "kl_coef": 0.034, "gae_lambda": 1.0, "minibatch_size": 8},
    ),
    Method(
        "abc",
        "ABC",
        "abc",
        "prompt",
        {"learning_rate": 2.8e-4, "kl_coef": 0.055, "gae_lambda": 0.95, "minibatch_size": 4},
    ),
    Method(
        "prefix-score",
        "prefix score",
        "prefix-score",
        "prompt",
        {"learning_rate": 1.8e-4, "kl_coef": 0.075, "gae_lambda": 0.0, "minibatch_size": 8},
    ),
)
"""The methods, the baseline first. benchmarks/tuning.py found the settings, with the same number of
runs for each method, on completions as long as those of the demo."""

NUM_ENVS = 16
"""Episodes per iteration, all in one batch."""
NUM_SAMPLES = 2
"""Prompts whose completions are shown."""
ENDS = 10
"""Iterations at the start and at the end of a run that the table averages over."""
SMOOTHING = 5
"""Iterations in the trailing mean that decides when a run reaches the baseline's best score."""
