"""The scripts as users call them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py"))


def call(script, *arguments, **variables):
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        check=True,
    ).stdout


def test_there_is_a_script_for_each_folder_of_results():
    assert SCRIPTS == [
        "agents.py",
        "architectures.py",
        "bad_input.py",
        "cleanrl.py",
        "credit_fidelity.py",
        "demo_speed.py",
        "kills.py",
        "learning.py",
        "mismatch.py",
        "pairs.py",
        "precision.py",
        "prefixes.py",
        "processes.py",
        "scale.py",
        "soak.py",
        "suites.py",
        "throughput.py",
        "tuning.py",
        "zoo.py",
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_explains_itself_without_loading_torch(script):
    code = f"""
import runpy, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({str(BENCHMARKS / script)!r}, run_name="__main__")
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--tables-only" in done.stdout
    assert "--output" in done.stdout
    assert done.stdout.endswith("False\n")


def test_learning_runs_stores_and_makes_its_tables(tmp_path):
    arguments = ["--task", "planted", "--seeds", "1", "--jobs", "1", "--iterations", "1"]
    printed = call("learning.py", *arguments, "--output", tmp_path)
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert sorted(rows["condition"]) == sorted(
        [
            "ABC",
            "causal shaping",
            "random credit",
            "shuffled ABC",
            "sparse",
            "sparse, λ = 1",
            "uniform credit",
        ]
    )
    assert json.loads((tmp_path / "meta.json").read_text())["hyperparameters"]["num_epochs"] == 4
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert printed.endswith(table + "\n")
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    # Nothing is left to run.
    assert call("learning.py", *arguments, "--output", tmp_path) == table + "\n"


def test_cleanrl_runs_only_the_script_that_it_names(tmp_path):
    script = tmp_path / "ppo.py"
    script.write_text("print('another script')\n", encoding="utf-8")
    command = [sys.executable, BENCHMARKS / "cleanrl.py", "--script", script, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    assert done.returncode == 1
    assert f"has the SHA-256 {digest}" in done.stderr


def test_cleanrl_notes_the_scores_of_an_unmodified_script(tmp_path):
    """The script makes its environments as CleanRL's does, and knows nothing of the benchmark."""
    script = tmp_path / "ppo.py"
    script.write_text(
        """
import sys
import gymnasium as gym
import numpy as np
if __name__ == "__main__":
    env_id = sys.argv[sys.argv.index("--env-id") + 1]
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(env_id) for _ in range(8)])
    envs.reset(seed=int(sys.argv[sys.argv.index("--seed") + 1]))
    for _ in range(17 * 8):
        envs.step(np.zeros(8, dtype=np.int64))
    print("nothing that anyone reads")
""",
        encoding="utf-8",
    )
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    arguments = ["--script", script, "--sha256", digest, "--setting", "4 tokens, dense"]
    printed = call("cleanrl.py", *arguments, "--seeds", "1", "--output", tmp_path)
    rows = pd.read_csv(tmp_path / "runs.csv")
    assert rows["episodes"].tolist() == [64]
    assert rows["timesteps"].tolist() == [8 * (17 * 8 - 1)]  # the last step resets
    assert json.loads((tmp_path / "meta.json").read_text())["sha256"] == digest
    assert printed.endswith((tmp_path / "table.md").read_text(encoding="utf-8") + "\n")


def test_bad_input_counts_what_the_tests_tried(tmp_path):
    test = "test_constructors.py::test_a_wrong_value_is_refused[credit.RandomCredit-seed]"
    shown = call("bad_input.py", f"tests/bad_input/{test}", "--output", tmp_path)
    rows = pd.read_csv(tmp_path / "outcomes.csv")
    assert rows[["area", "outcome"]].values.tolist() == [["constructors", "clear error"]]
    assert rows["cases"].item() > 10
    assert json.loads((tmp_path / "meta.json").read_text())["tests"].startswith("1 passed")
    assert f"| all | {rows['cases'].item()} |" in shown
