"""Every example runs as it stands, at a small size, on the embedded models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {
    "quickstart.py": ("--episodes", "1"),
    "train_ppo.py": ("--iterations", "1"),
    "causal_shaping.py": ("--iterations", "1"),
    "planted.py": ("--iterations", "1"),
    "other_models.py": ("--iterations", "1"),
    "sb3_language_model.py": ("--iterations", "1"),
    "cleanrl_style_ppo.py": ("--num-envs", "2", "--num-steps", "34", "--total-timesteps", "68"),
}
ELSEWHERE = {"rllib_ppo.py"}  # test_rllib.py: it needs an environment of its own


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SIZES) | ELSEWHERE


@pytest.mark.parametrize("name", SIZES)
def test_example_runs_and_reports_a_score(tmp_path, name):
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *SIZES[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "score" in result.stdout
