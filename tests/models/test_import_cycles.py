"""The modules of textgym.models import each other without cycles, for type checking too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "textgym" / "models"


def test_the_imports_have_an_order():
    graph = {}
    for path in FOLDER.rglob("*.py"):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        name = ".".join(("textgym.models", *(part for part in parts if part != "__init__")))
        graph[name] = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
        }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError on a cycle
    assert order.index("textgym.models.completions") < order.index("textgym.models.reward_model")
