"""Links out of ``docs/``: right on GitHub as they stand, and made right for the site.

On GitHub, pages link to files of the repository by relative paths. On the site, pictures are copied
beside the pages, and other files are links to GitHub. A link such as
``../agents/ppo.py#PPO._iterate`` leads to the lines of that name, wherever they are today.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["BrokenLinkError", "for_site", "line_of", "targets", "to_pages"]

REPOSITORY = "https://github.com/textgym/textgym"
_LINK = re.compile(r"(?<=\]\()(\.\./[^)\s]+)(?=\))|(?<=\]: )(\.\./\S+)$", re.MULTILINE)
_NOTEBOOK = re.compile(r"(?<!as a notebook)(\]\((?!https?:)[^)\s]+)\.ipynb(?=\))")
_PICTURES = {".png", ".gif", ".svg", ".jpg"}


class BrokenLinkError(Exception):
    """A link that leads to no file, or to no definition in it."""


def targets(text: str) -> list[str]:
    """The relative links of a page that begin with ``../``."""
    return [first or second for first, second in _LINK.findall(text)]


def to_pages(text: str) -> str:
    """Let links to notebooks, other than those to download them, lead to their pages."""
    return _NOTEBOOK.sub(r"\1.md", text)


def line_of(source: str, name: str) -> int:
    """The line where a function, a class or a method begins.

    Args:
        source: Python source.
        name: Such as ``gae`` or ``PPO._iterate``.

    Raises:
        BrokenLinkError: If there is none of that name.
    """
    body, node = ast.parse(source).body, None
    for part in name.split("."):
        node = next((one for one in body if getattr(one, "name", None) == part), None)
        if node is None:
            raise BrokenLinkError(f"there is no {name}")
        body = getattr(node, "body", [])
    return int(node.lineno)


def for_site(text: str, page: str, root: Path, picture: Callable[[Path], str] | None = None) -> str:
    """Make the links of a page that leave ``docs/`` right for the site.

    Args:
        text: The page in Markdown.
        page: Its file below ``docs/``, with forward slashes.
        root: The checkout.
        picture: Takes a picture outside ``docs/`` and returns its file below ``docs/``, where the
            site has a copy.

    Raises:
        BrokenLinkError: If a file or a definition does not exist.
    """
    folder = posixpath.dirname(f"docs/{page}")

    def replaced(match: re.Match[str]) -> str:
        path, _, name = match[0].partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        if place.startswith("docs/") or place == "docs":
            return match[0]
        file = root / place
        if place.startswith("..") or not file.exists():
            raise BrokenLinkError(f"{page}: {match[0]} leads to no file")
        if file.suffix in _PICTURES and picture is not None:
            return posixpath.relpath(f"docs/{picture(file)}", folder)
        kind = "tree" if file.is_dir() else "blob"
        url = f"{REPOSITORY}/{kind}/main/{place}"
        if name and file.suffix == ".py":
            return f"{url}#L{line_of(file.read_text(encoding='utf-8'), name)}"
        return f"{url}#{name}" if name else url

    return _LINK.sub(replaced, text)
