"""What the tests of several commands share."""

from __future__ import annotations

import re

SMALL = [
    *("--min-new-tokens", "2", "--max-new-tokens", "4", "--num-envs", "4"),
    *("--episodes-per-iteration", "4", "--num-epochs", "1", "--total-timesteps", "17"),
    *("--credit", "uniform", "--beta", "0.5", "--seed", "3"),
]
"""Flags of a training of two iterations."""

ONE_LINE = re.compile(r"textgym: [^\n]+\n")
"""How every error looks."""


def flags(values):
    """The words on the command line for a dict of flags."""
    return [word for flag in values.items() for word in flag]


def measured(out, name):
    """A number that `textgym evaluate` printed."""
    return float(re.search(rf"^{name} +([+-]?[\d.]+)", out, re.MULTILINE)[1])
