"""The API reference: a page per public module, complete by its ``__all__``."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["MODULES", "documented_names", "page_name", "pages", "public_names"]

MODULES = {
    "textgym": "Importing textgym registers the environments, and loads no model.",
    "textgym.envs": "The decision process, single and batched.",
    "textgym.wrappers": "Wrappers for single environments.",
    "textgym.wrappers.vector": "The wrappers for batched environments, under the same names.",
    "textgym.wrappers.presets": "Environments with wrappers applied.",
    "textgym.credit": "Credit assigners and potentials.",
    "textgym.agents": "The bundled agents, with their policy and rollouts.",
    "textgym.agents.values": "Values of states that no critic has to learn.",
    "textgym.agents.samplers": "Clients of outside engines.",
    "textgym.agents.sb3": "What Stable-Baselines3 needs for text.",
    "textgym.agents.sb3.maskable": "The same for sb3-contrib's MaskablePPO.",
    "textgym.models": "Language models, reward models, and what can be read out of them.",
    "textgym.prompts": "Where episodes start.",
    "textgym.planted": "The program of the planted task, and its optimum.",
    "textgym.rendering": "Text with its credit: for terminals, and as pixels.",
    "textgym.benchmark": "Methods under one protocol. Needs the extra `textgym[benchmarks]`.",
    "textgym.reward_training": "Reward models from pairs or labels.",
    "textgym.exact": "Exact gradients on small processes.",
    "textgym.errors": "The errors that textgym raises.",
    "textgym.memory": "A setting of the allocator, for training programs.",
}
"""The documented modules, and a sentence on each."""


def page_name(module: str) -> str:
    """The file of a module's page, below ``docs/``."""
    return f"reference/{module.removeprefix('textgym.').replace('.', '_')}.md"


def public_names(module: str) -> list[str]:
    """What ``__all__`` says."""
    return list(importlib.import_module(module).__all__)


def documented_names(module: str) -> list[str]:
    """Those of the public names that have a docstring of their own: all but plain constants."""
    return [name for name in public_names(module) if name not in _constants(module)]


def _constants(module: str) -> dict[str, Any]:
    values = {name: getattr(importlib.import_module(module), name) for name in public_names(module)}
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def pages() -> dict[str, str]:
    """All pages by file, with a directive of mkdocstrings for each public name; and their index."""
    rows = ["| module | what it has |", "|---|---|"]
    for module, sentence in MODULES.items():
        file = page_name(module).removeprefix("reference/")
        rows.append(f"| [`{module}`]({file}) | {sentence} |")
    index = (
        "# API reference\n\nEvery public name, from its docstring. The site shows the docstrings; "
        "on GitHub, read them in the code.\n\n" + "\n".join(rows) + "\n"
    )
    return {"reference/index.md": index} | {
        page_name(module): _page(module, sentence) for module, sentence in MODULES.items()
    }


def _page(module: str, sentence: str) -> str:
    parts = [f"# {module}", sentence]
    constants = _constants(module)
    constants.pop("__version__", None)
    parts += [f"::: {module}.{name}" for name in documented_names(module)]
    if constants:
        parts.append("## Constants")
        parts.append("\n".join(f"- `{name} = {value!r}`" for name, value in constants.items()))
    return "\n\n".join(parts) + "\n"
