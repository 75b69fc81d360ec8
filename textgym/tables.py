"""Rows and columns from a file: JSON Lines, JSON, CSV, Parquet, or text with one row per line.

Values stay what the file says: a CSV file holds text, so "NA" and "007" are texts. A file that is
damaged, or in another encoding or format than its name says, is refused with the line that is
wrong.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError

__all__ = ["FILE_TYPES", "Table", "read_table"]

_GZIP, _ZIP, _PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"PAR1"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """Rows, with the names of ``datasets.Dataset`` for what both have.

    Attributes:
        column_names: Names of the columns.
        rows: By column, the value of each row; None where a row lacks it.
    """

    column_names: list[str]
    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column."""
        return [row.get(column) for row in self.rows]


class _Wrong(Exception):
    """What is wrong with a file, and what to do."""


def read_table(path: Path, argument: str) -> Table:
    """Read a file whose ending is in :data:`FILE_TYPES`.

    Args:
        path: The file.
        argument: The argument that errors name.

    Raises:
        InvalidArgumentError: If the file cannot be read, is damaged, or holds no row.
    """
    if path.suffix not in FILE_TYPES:
        raise InvalidArgumentError(
            argument, str(path), f"unknown file type; use one of {', '.join(FILE_TYPES)}"
        )
    try:
        table = FILE_TYPES[path.suffix](path)
        if not table.rows:
            raise _Wrong("the file has no row; write at least one")
    except _Wrong as wrong:
        raise InvalidArgumentError(argument, str(path), str(wrong)) from None
    except OSError as error:
        raise InvalidArgumentError(
            argument, str(path), f"cannot be read ({first_line(error)})"
        ) from None
    return table


def _text_of(path: Path) -> str:
    """The text of a file in UTF-8, without a byte-order mark; line ends are those of the file."""
    data = path.read_bytes()
    if data.startswith((_GZIP, _ZIP)):
        raise _Wrong("the file is compressed; unpack it first")
    if data.startswith(_PARQUET):
        raise _Wrong("the file is Parquet; name it .parquet")
    if data.startswith(_UTF_16):
        raise _Wrong("the file is in UTF-16; save it in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Wrong(
            f"byte {data[error.start]:#04x} in line {line} is not UTF-8; save the file in UTF-8"
        ) from None
    if not text.strip():
        raise _Wrong("the file is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _Wrong(f"line {line} has a null character; the file is not text, or is damaged")
    return text


def _lines(path: Path) -> list[str]:
    """The lines of a file; only a line feed, with or without a carriage return, ends one."""
    lines = [line.removesuffix("\r") for line in _text_of(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _table_of(rows: Sequence[tuple[str, Any]]) -> Table:
    """A table of JSON objects, each with the place that errors name."""
    names: dict[str, None] = {}
    for place, row in rows:
        if not isinstance(row, dict):
            raise _Wrong(f'{place} is {_shown(row)}; write objects such as {{"prompt": "I"}}')
        names |= dict.fromkeys(row)
    return Table(list(names), [row for _, row in rows])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Wrong(
            f"{place} is not JSON ({error.msg} at character {error.pos + 1}): {_shown(text)}"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers of many digits, deep nesting
        raise _Wrong(f"{place} cannot be read as JSON ({first_line(error)})") from None


def _read_json_lines(path: Path) -> Table:
    places = [(f"line {n}", line) for n, line in enumerate(_lines(path), start=1)]
    return _table_of([(place, _from_json(line, place)) for place, line in places if line.strip()])


def _read_json(path: Path) -> Table:
    text = _text_of(path)
    if text.lstrip().startswith("{"):  # JSON Lines under another name
        return _read_json_lines(path)
    rows = _from_json(text, "the file")
    if not isinstance(rows, list):
        raise _Wrong(f"the file holds {_shown(rows)}; write a list of objects")
    return _table_of([(f"entry {n} of the list", row) for n, row in enumerate(rows, start=1)])


def _read_csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    try:
        header = next(reader)
        if "" in header or len(set(header)) < len(header):
            raise _Wrong(f"the header {_shown(header)} has an empty name, or one name twice")
        rows = []
        for fields in reader:
            if not fields:  # a blank line
                continue
            if len(fields) != len(header):
                raise _Wrong(
                    f"line {reader.line_num} has {len(fields)} fields, and the header has "
                    f'{len(header)}; put text with commas or quotes into "double quotes"'
                )
            rows.append(dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise _Wrong(
            f"cannot be read as CSV up to line {reader.line_num} ({error}); close every quote, and "
            "use JSON Lines for long texts"
        ) from None
    return Table(header, rows)


def _read_text(path: Path) -> Table:
    return Table(["text"], [{"text": line} for line in _lines(path)])


def _read_parquet(path: Path) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            table = file.read()
        return Table(list(table.column_names), table.to_pylist())
    except (ArrowException, OSError, ValueError) as error:
        raise _Wrong(
            f"is not a whole Parquet file ({first_line(error)}); copy or write it again"
        ) from None


FILE_TYPES: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
"""The readers by the ending of the file's name."""
