"""Notebooks as pages: what they say, what they run, and what came out when they were last run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["as_markdown"]

_FENCE = "````"
"""Longer than the fences that a cell may contain."""


def as_markdown(notebook: Mapping[str, Any], address: str) -> str:
    """A page with the cells of a notebook and their outputs.

    Args:
        notebook: What a file of nbformat 4 holds, as JSON.
        address: Where the notebook can be downloaded, relative to the page.
    """
    language = notebook.get("metadata", {}).get("language_info", {}).get("name", "python")
    parts = []
    for cell in notebook["cells"]:
        source = _text(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"{_FENCE}{language}\n{source}\n{_FENCE}")
            parts += [_output(one) for one in cell.get("outputs", ())]
    if parts:  # below the heading that the first cell begins with
        first, _, rest = parts[0].partition("\n")
        parts[0] = f"{first}\n\n[Download this page as a notebook]({address})\n\n{rest.strip()}"
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def _output(output: Mapping[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _fenced(_text(output["text"]))
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(_text(data["image/png"]).split())
        return f"![Output of the cell above](data:image/png;base64,{picture})"
    if "text/html" in data:
        return f"<div>{''.join(_text(data['text/html']).splitlines())}</div>"
    return _fenced(_text(data.get("text/plain", output.get("evalue", ""))))


def _fenced(text: str) -> str:
    return f"{_FENCE}text\n{text.rstrip()}\n{_FENCE}" if text.strip() else ""


def _text(lines: str | Sequence[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)
