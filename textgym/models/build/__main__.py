"""Train the embedded models: ``python -m textgym.models.build --help``."""

from __future__ import annotations

import sys

import tyro

from textgym.errors import TextgymError
from textgym.models.build.pipeline import BuildOptions, build
from textgym.reviews import load_reviews


def main() -> None:
    """Build with options from the command line."""
    options = tyro.cli(BuildOptions, prog="python -m textgym.models.build")
    try:
        build(options, load_reviews("train"), load_reviews("held_out"))
    except TextgymError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
