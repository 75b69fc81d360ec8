"""What the demo compares, and how."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENDS", "METHODS", "NUM_ENVS", "NUM_SAMPLES", "SMOOTHING", "Method"]


@dataclass(frozen=True)
class Method:
    """One way to pay the policy.

    Attributes:
        name: Id, in file names and results.
        label: Name for people.
        credit: Id of the credit assigner.
    """

    name: str
    label: str
    credit: str


METHODS = (
    Method("sparse", "sparse reward", "sparse"),
    Method("abc", "ABC", "abc"),
    Method("shaping", "causal shaping", "shaping"),
)
"""The methods, the baseline first."""

NUM_ENVS = 16
"""Episodes per iteration, all in one batch."""
NUM_SAMPLES = 4
"""Prompts whose completions are shown."""
ENDS = 10
"""Iterations at the start and at the end of a run that the table averages over."""
SMOOTHING = 5
"""Iterations in the trailing mean that decides when a run reaches the baseline's best score."""
