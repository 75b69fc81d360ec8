"""Docstrings, taken apart and turned into Markdown."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Argument",
    "Docstring",
    "Field",
    "fields_of",
    "markdown",
    "scalars",
    "scalars_as_table",
]

_RULE = re.compile(r"^=+ +=+$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


def markdown(text: str, linked: Callable[[str], str | None] = lambda name: None) -> str:
    """Turn Sphinx's roles and double backticks into Markdown.

    Args:
        text: A docstring, or a part of one.
        linked: What a role becomes, by the name in it; None for the name as code.

    >>> markdown(":class:`textgym.envs.PlantedEnv` takes ``seed``")
    '`textgym.envs.PlantedEnv` takes `seed`'
    """
    text = _ROLE.sub(lambda match: linked(match[1]) or f"`{match[1]}`", text)
    return text.replace("``", "`") if "```" not in text else text


@dataclass(frozen=True)
class Argument:
    """One argument of a docstring: its name, what it means, and its default as code."""

    name: str
    meaning: str
    default: str


@dataclass(frozen=True)
class Docstring:
    """A docstring in Google's style, with sections in Markdown.

    Attributes:
        summary: The first paragraph.
        body: What follows it, up to the first heading or ``Args:``.
        sections: Text by heading, in their order.
        arguments: Those listed under ``Args:``.
    """

    summary: str
    body: str
    sections: dict[str, str]
    arguments: tuple[Argument, ...]

    @classmethod
    def of(cls, documented: Any) -> Docstring:
        """The docstring of a class or a function."""
        text = inspect.cleandoc(documented.__doc__)
        text, *google = re.split(
            r"^(?=(?:Args|Returns|Raises|Example):$)", text, flags=re.MULTILINE
        )
        first, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
        summary, _, body = first.strip().partition("\n\n")
        sections = {}
        for part in parts:
            heading, _, content = part.partition("\n")
            sections[heading.strip()] = content.strip()
        listed = next((part for part in google if part.startswith("Args:")), "")
        return cls(" ".join(summary.split()), body.strip(), sections, tuple(_arguments(listed)))


def _arguments(section: str) -> list[Argument]:
    entries = re.split(r"^    (?=[*\w]+: )", section, flags=re.MULTILINE)[1:]
    arguments = []
    for entry in entries:
        name, _, meaning = " ".join(entry.split()).partition(": ")
        default = re.search(r" Default: (`.*`)\.$", meaning)
        meaning = meaning[: default.start()] if default else meaning
        arguments.append(Argument(name, meaning, default[1] if default else ""))
    return arguments


@dataclass(frozen=True)
class Field:
    """A field of a dataclass, as its source has it.

    Attributes:
        name: Its name.
        annotation: Its type, as source text.
        default: Its default, as source text; empty if it has none.
        meaning: The docstring below it.
    """

    name: str
    annotation: str
    default: str
    meaning: str


def fields_of(source: Path, class_name: str) -> list[Field]:
    """The fields of a dataclass, with the docstrings that Python itself throws away."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (body,) = (
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    fields = []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assert isinstance(following, ast.Expr)
            assert isinstance(following.value, ast.Constant)
            meaning = " ".join(str(following.value.value).split())
            default = "" if node.value is None else ast.unparse(node.value)
            fields.append(Field(node.target.id, ast.unparse(node.annotation), default, meaning))
    return fields


def scalars(documented: Any) -> dict[str, str]:
    """The table of scalars between rows of ``===`` in a docstring: meaning by name."""
    return _rows(_RULE.split(inspect.cleandoc(documented.__doc__))[1])


def scalars_as_table(text: str) -> str:
    """A docstring whose table between rows of ``===``, if it has one, is a table in Markdown."""
    before, *parts = _RULE.split(text)
    if len(parts) < 2:
        return text
    rows = [f"| `{name}` | {meaning} |" for name, meaning in _rows(parts[0]).items()]
    return before + "\n".join(["| scalar | meaning |", "|---|---|", *rows]) + "".join(parts[1:])


def _rows(table: str) -> dict[str, str]:
    rows: dict[str, str] = {}
    name = ""
    for line in table.strip("\n").splitlines():
        if not line.startswith(" "):
            name, line = line.split(maxsplit=1)
        rows[name] = f"{rows.get(name, '')} {line.strip()}".strip()
    return rows
