"""Write the pages that are made from the code: environments, wrappers, command line, gallery, API.

    python docs/generate.py               # pages, and tables within pages
    python docs/generate.py --pictures    # the pictures of environments and agents, too

The files are committed, so that they can be read on GitHub. A test compares them with the code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from making import blocks, command_line, environments, gallery, reference, wrappers

DOCS = Path(__file__).parent


def pages() -> dict[str, str]:
    """Every page that is made anew as a whole, by file below docs/; the gallery is made apart."""
    return {
        **environments.pages(),
        "wrappers.md": wrappers.page(),
        "command_line.md": command_line.page(),
        **reference.pages(),
    }


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", action="store_true", help="draw pictures, too")
    arguments = parser.parse_args()
    for file, text in (pages() | {"gallery.md": gallery.page()} | blocks.pages()).items():
        path = DOCS / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if arguments.pictures:
        from making import pictures

        pictures.draw(DOCS / "images")


if __name__ == "__main__":
    main()
