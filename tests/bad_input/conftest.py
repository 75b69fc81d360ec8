"""One tiny environment of each kind for all cases, and the count of what became of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401
from tests.bad_input.outcomes import TALLY


@pytest.fixture(scope="session")
def env(tiny):
    # Gymnasium's checker fails at the first step after a reset that was refused.
    return gym.make("ABC-RLHF-v0", **tiny, disable_env_checker=True)


@pytest.fixture(scope="session")
def envs(tiny):
    return gym.make_vec("ABC-RLHF-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED, **tiny)


@pytest.fixture(scope="session", autouse=True)
def count():
    """Write the outcomes by area into the file that TEXTGYM_BAD_INPUT names, if it is set."""
    yield
    file = os.environ.get("TEXTGYM_BAD_INPUT")
    if file:
        areas = sorted({area for area, _ in TALLY})
        table = {a: {o: n for (b, o), n in sorted(TALLY.items()) if a == b} for a in areas}
        Path(file).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
