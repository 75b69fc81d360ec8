"""Tables inside handwritten pages, made from the code.

A page marks where a table stands::

    <!-- hyperparameters agents/ppo.py PPOConfig -->
    …
    <!-- end -->

What is between the two lines is made anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from making import gallery
from making.docstrings import fields_of, markdown, scalars
from textgym.agents import PPO, RLOO

__all__ = ["filled", "pages"]

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"<!-- (hyperparameters|scalars|gallery) (.+?) -->\n.*?\n<!-- end -->", re.DOTALL
)
_AGENTS = {"PPO": PPO, "RLOO": RLOO}


def filled(text: str) -> str:
    """A page with the tables of its blocks."""
    return _BLOCK.sub(lambda match: _block(match[1], match[2]), text)


def pages() -> dict[str, str]:
    """All pages that have blocks, filled, by file below ``docs/``."""
    docs = ROOT / "docs"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(docs.rglob("*.md"))}
    return {
        str(path.relative_to(docs)): filled(text)
        for path, text in texts.items()
        if _BLOCK.search(text)
    }


def _block(kind: str, of: str) -> str:
    makers = {"hyperparameters": _hyperparameters, "scalars": _scalars, "gallery": _gallery}
    table = makers[kind](*of.split())
    return f"<!-- {kind} {of} -->\n\n{table}\n\n<!-- end -->"


def _hyperparameters(file: str, class_name: str) -> str:
    rows = ["| hyperparameter | default | meaning |", "|---|---|---|"]
    for one in fields_of(ROOT / file, class_name):
        rows.append(f"| `{one.name}` | `{one.default}` | {_cell(one.meaning)} |")
    return "\n".join(rows)


def _scalars(agent: str) -> str:
    rows = ["| scalar | meaning |", "|---|---|"]
    rows += [f"| `{name}` | {_cell(text)} |" for name, text in scalars(_documented(agent)).items()]
    return "\n".join(rows)


def _gallery(*names: str) -> str:
    return gallery.sample(names)


def _documented(agent: str) -> type:
    """The class whose docstring has the table: RLOO and GRPO inherit theirs."""
    return next(cls for cls in _AGENTS[agent].__mro__ if "train/alarm" in (cls.__doc__ or ""))


def _cell(text: str) -> str:
    return markdown(text).replace("|", "\\|")
