"""Keeping freed memory in the process, so that training does not ask for it again and again."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, in malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next allocation instead of returning it to the system.

    A training step allocates and frees the same tensors over and over. By default, glibc asks the
    system for each large one, which hands out zeroed pages one fault at a time, and gives it back
    when it is freed. With a model as large as GPT-2 small, that takes a sixth of a gradient step
    (docs/performance.md).

    The setting holds for the whole process until it ends: its memory stays at the peak. So no
    class of the library calls this; ``textgym train``, ``textgym evaluate`` and the demo do, and
    your own training script can. Settings from outside (``MALLOC_...`` variables or
    ``GLIBC_TUNABLES``) are respected, and other C libraries are left alone.

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
