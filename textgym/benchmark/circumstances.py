"""The circumstances of a benchmark: commit, command, machine and versions, for its meta.json."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["commit", "commit_of_code", "describe", "finished_today"]

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("textgym", "agents", "benchmarks", ":!benchmarks/results")


def commit(name: str = "HEAD") -> str:
    """The abbreviated hash of a commit; by default of the one that is checked out."""
    return _git("rev-parse", "--short=7", name)


def commit_of_code() -> str:
    """The commit, with "-dirty" appended if textgym or the benchmarks differ from it.

    Without a checkout, "textgym" and the version that is installed; the same with "commit unknown"
    if git is missing, or refuses the checkout, as it does one of another user.
    """
    installed = f"textgym {version('textgym')}"
    if not (_ROOT / ".git").exists():
        return installed
    try:
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
        return commit() + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return f"{installed}, commit unknown"


def describe(*packages: str) -> dict[str, Any]:
    """Describe the run that is going on.

    Args:
        *packages: Names of the packages whose versions matter.

    Returns:
        Command, commit, machine, whether the processor has bfloat16 instructions and whether they
        pay, versions, date.
    """
    from textgym.models.loading import has_bfloat16, is_bfloat16_faster  # on use: slow to import

    return {
        "command": _command(),
        "commit": commit_of_code(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, no GPU used",
        "bfloat16_instructions": has_bfloat16(),
        "bfloat16_is_faster": is_bfloat16_faster(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "finished": time.strftime("%Y-%m-%d"),
    }


def finished_today(circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`describe` found when something began, with today's date where it has one."""
    if "finished" not in circumstances:
        return dict(circumstances)
    return {**circumstances, "finished": time.strftime("%Y-%m-%d")}


def _command() -> str:
    """The command as a shell takes it, without the folder that textgym is installed in."""
    script, *arguments = sys.argv
    path = Path(script)
    if path.name == "textgym" or path.parts[-2:] == ("textgym", "__main__.py"):
        return shlex.join(["textgym", *arguments])
    return shlex.join(["python", script, *arguments])


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, check=True)
    return done.stdout.strip()
