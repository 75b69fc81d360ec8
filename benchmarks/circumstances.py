"""Under which circumstances a benchmark was run: what its meta.json tells."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

__all__ = ["commit", "describe"]


def commit() -> str:
    """The commit that is checked out, abbreviated."""
    return subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()


def describe(*packages: str) -> dict:
    """Command, machine, versions of Python and of some packages, and the date."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, no GPU used",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "finished": time.strftime("%Y-%m-%d"),
    }
