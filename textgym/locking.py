"""A folder that takes one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textgym.errors import InvalidArgumentError

__all__ = ["alone_in"]


@contextmanager
def alone_in(folder: Path, doing: str) -> Iterator[None]:
    """A context that one process at a time can be in; it ends with the process, too.

    Args:
        folder: Made if it is missing.
        doing: What another process would be doing, for the error.

    Raises:
        InvalidArgumentError: If another process is in it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        remedy = f"another process is {doing}: wait for it, or name another folder"
        raise InvalidArgumentError("output", str(folder), remedy) from None
    try:
        yield
    finally:
        lock.release()
