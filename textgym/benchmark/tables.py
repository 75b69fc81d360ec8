"""Tables in Markdown, and the file that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["markdown_table", "write_tables"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table. A bar in a cell is escaped, or it would begin another one."""
    lines = [[cell.replace("|", r"\|") for cell in cells] for cells in (header, *rows)]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    return [text[0], "|---" * len(header) + "|", *text[1:]]


def write_tables(folder: Path, *tables: Sequence[str]) -> str:
    """Write ``table.md``: the lines of some tables, with an empty line in between; returns it."""
    text = "\n\n".join("\n".join(lines) for lines in tables) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text
