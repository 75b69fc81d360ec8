"""Tables in Markdown, and files of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [list(header), *map(list, rows)]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    return [text[0], "|---" * len(header) + "|", *text[1:]]
