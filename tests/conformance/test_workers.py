"""Environments in worker processes, however these are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("worker_script.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, language_model, classifier, tokenizer):
    """Tiny models, which every worker loads by name."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("lm", language_model), ("rm", classifier)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("kind", "start_method", "env_id"),
    [
        ("async", "fork", "ABC-RLHF-v0"),
        ("async", "fork", "ABC-RLHF-Features-v0"),
        ("async", "spawn", "ABC-RLHF-Features-v0"),
        ("async", "forkserver", "ABC-RLHF-v0"),
        ("subproc", "fork", "ABC-RLHF-v0"),
        ("subproc", "spawn", "ABC-RLHF-v0"),
        ("subproc", "forkserver", "ABC-RLHF-Features-v0"),
    ],
)
def test_workers_pay_what_an_environment_pays_alone(kind, start_method, env_id, folder):
    """Also after a fork of a process whose torch has used threads."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, start_method, env_id, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=environ,
    )
    assert done.stdout.strip().endswith("same as alone"), done.stderr
