"""Where the commands print."""

from __future__ import annotations

from rich.console import Console

__all__ = ["make_console"]


def make_console(quiet: bool = False) -> Console:
    """A console that prints strings as they are.

    Rich would otherwise read the brackets in a path as markup and drop them.

    Args:
        quiet: Print nothing.
    """
    return Console(highlight=False, markup=False, quiet=quiet)
