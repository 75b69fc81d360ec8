"""The effect of keep_freed_memory, measured as page faults of a separate process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from textgym.memory import keep_freed_memory

SCRIPT = """
import resource, torch
from textgym.memory import keep_freed_memory

def use(times):
    for _ in range(times):
        torch.ones(2**24).sum()  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults():
    return -use(10) + use(20)  # page faults; the first rounds warm up

print(faults(), keep_freed_memory(), faults())
"""
NEEDS_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")


def run(**variables: str) -> list[str]:
    outside = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    outside.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=outside | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@NEEDS_GLIBC
def test_freed_memory_is_used_again_without_faults() -> None:
    before, is_set, after = run()
    assert is_set == "True"
    assert int(before) >= 20 * 64 / 2  # a page has at most 2 MB
    assert int(after) < int(before) / 4


@NEEDS_GLIBC
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
)
def test_settings_from_outside_are_respected(variables: dict[str, str]) -> None:
    assert run(**variables)[1] == "False"


def test_other_c_libraries_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
