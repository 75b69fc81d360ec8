"""Memory that is used again and again should stay with the process."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, in malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation, and not return it to the system.

    A training step allocates and frees the same tensors over and over. By default glibc asks the
    system for each large one, which hands out zeroed pages one fault at a time, and gives it back
    when it is freed. With a model as large as GPT-2 small that takes a sixth of a gradient step
    (docs/performance.md).

    It holds for the whole process from here on: the memory that the process has taken at its peak
    stays with it until it ends. The bundled agents call this when they are set up on a processor.
    Settings that were made from outside, by a variable ``MALLOC_...`` of the environment or by
    ``GLIBC_TUNABLES``, are respected, and other C libraries are left alone.

    Returns:
        Whether anything was set.
    """
    is_set = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    if is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    c_library = ctypes.CDLL(None)
    never_map = c_library.mallopt(_M_MMAP_MAX, 0)
    never_trim = c_library.mallopt(_M_TRIM_THRESHOLD, -1)
    return bool(never_map and never_trim)
