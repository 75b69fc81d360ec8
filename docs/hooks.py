"""What MkDocs does beside its plugins.

Links out of ``docs/`` lead to GitHub, names of public objects to the API reference, pictures to
themselves in full size, and notebooks become pages.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from making import links, notebooks, reference
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_CODE = re.compile(r"(?<![\[`])`(textgym(?:\.\w+)+)`(?![\]`])")
_PICTURE = re.compile(r"^!\[([^\]]*)\]\((?!data:)([^)\s]+)\)$", re.MULTILINE)
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_documented: set[str] = set()


def on_pre_build(config: Any) -> None:
    """Learn which names the reference has."""
    _documented.update(
        f"{module}.{name}"
        for module in reference.MODULES
        for name in reference.documented_names(module)
    )


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every notebook, under its name with the ending .md."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        text = notebooks.as_markdown(json.loads(file.content_string), Path(file.src_uri).name)
        page = File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=text)
        files.append(page)
    return files


def on_page_markdown(text: str, page: Page, config: Any, files: Files) -> str:
    """Make links to files of the repository, and code that names a public object, lead there."""

    def picture(path: Path) -> str:
        copy = "pictures/" + path.relative_to(ROOT).as_posix()
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(path)))
        return copy

    text = links.to_pages(links.for_site(text, page.file.src_uri, ROOT, picture))
    text = _PICTURE.sub(r"[![\1](\2)](\2)", text)
    parts = _FENCE.split(text)
    parts[::2] = [_CODE.sub(_reference, part) for part in parts[::2]]
    return "".join(parts)


def _reference(match: re.Match[str]) -> str:
    return f"[{match[0]}][{match[1]}]" if match[1] in _documented else match[0]
