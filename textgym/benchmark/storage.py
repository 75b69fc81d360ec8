"""Tables on disk. A file is replaced in one step: a process that is killed leaves the old one.

Who adds to a table reads it, and writes it anew. So two processes that add to one table would undo
what the other has stored, and a folder takes one of them at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from textgym.errors import InvalidArgumentError
from textgym.locking import alone_in

__all__ = ["only_writer", "read_rows", "write_json", "write_rows"]

Aliases = Mapping[str, Mapping[str, str]]


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A context in which no other process may add to the tables of a folder.

    It ends with the process, too, however that ends.

    Args:
        folder: Made if it is missing.

    Raises:
        InvalidArgumentError: If another process is at it.
    """
    with alone_in(folder, "writing there"):
        yield


def read_rows(
    path: Path, columns: Sequence[str] = (), aliases: Aliases | None = None
) -> pd.DataFrame:
    """Read a table. The column "commit" is text, even if its digits look like a number (814e319).

    Args:
        path: A .csv or .parquet file.
        columns: Columns of the empty table that is returned if there is no file.
        aliases: By column, labels of earlier results and what they are called today.

    Returns:
        A data frame.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    rows = pd.read_csv(path, dtype={"commit": str}) if _is_csv(path) else pd.read_parquet(path)
    return rows.replace(dict(aliases or {}))


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write a table to a .csv or .parquet file."""
    if _is_csv(path):
        _replace(path, lambda new: rows.to_csv(new, index=False))
    else:
        _replace(path, lambda new: rows.to_parquet(new, index=False, compression="zstd"))


def write_json(contents: Any, path: Path, indent: int = 2) -> None:
    """Write JSON."""
    text = json.dumps(contents, indent=indent, ensure_ascii=False) + "\n"
    _replace(path, lambda new: new.write_text(text, encoding="utf-8"))


def _is_csv(path: Path) -> bool:
    if path.suffix not in (".csv", ".parquet"):
        raise InvalidArgumentError("path", path, "must end in .csv or .parquet")
    return path.suffix == ".csv"


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    write(new)
    new.replace(path)
