"""The floors of the package: each module imports only from the floors below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ["textgym.errors", "textgym.memory", "textgym.rendering", "textgym.registration"],
    ["textgym.reviews", "textgym.planted", "textgym.exact"],
    ["textgym.prompts"],
    ["textgym.models"],
    ["textgym.credit.potentials"],
    ["textgym.credit"],
    ["textgym.envs", "textgym.agents"],
    ["textgym.wrappers"],
    ["textgym.plotting", "textgym.samples"],
    ["textgym.demo"],
    ["textgym.cli"],
    ["textgym.__main__"],
]


def floor_of(module):
    for level, names in enumerate(FLOORS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return level
    return None


def modules():
    for folder, package in ((ROOT / "textgym", "textgym"), (ROOT / "agents", "textgym.agents")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if name != "textgym":
                yield name, path


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_imports_point_downwards(name, path):
    level = floor_of(name)
    assert level is not None, f"{name} is on no floor"
    own = next(n for n in FLOORS[level] if name == n or name.startswith(n + "."))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            targets = [node.module]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        for target in targets:
            theirs = floor_of(target)
            if theirs is not None and not (target == own or target.startswith(own + ".")):
                assert theirs < level, f"{name} imports {target}"
