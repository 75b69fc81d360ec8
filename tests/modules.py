"""The modules of the package and their imports, read from the source files."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def package_modules():
    """Yield the name and the file of every module of textgym.

    The agents are read where they lie, in ``agents/``, and never through ``textgym/agents``: a
    checkout without symbolic links has the same modules.
    """
    agents = ROOT / "textgym" / "agents"
    for path in sorted((ROOT / "textgym").rglob("*.py")):
        if not path.is_relative_to(agents):
            yield module_name(path, ROOT / "textgym", "textgym"), path
    for path in sorted((ROOT / "agents").rglob("*.py")):
        yield module_name(path, ROOT / "agents", "textgym.agents"), path


def module_name(path, folder, package):
    """Name of the module in a file below the folder of a package."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


def import_graph(modules):
    """Find out which of some modules each of them imports.

    All imports count: at the top of a file, inside functions and under ``TYPE_CHECKING``.

    Args:
        modules: The files by module name.

    Returns:
        The names of the imported modules, as a set per module name.
    """
    return {name: set(_imports(name, path, modules)) - {name} for name, path in modules.items()}


def _imports(name, path, modules):
    is_package = path.stem == "__init__"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # one dot is the module's own package
                parents = name.split(".") if is_package else name.split(".")[:-1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            # `from package import name` imports the module of that name, if there is one.
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            names = [submodule if submodule in modules else base for submodule in submodules]
        else:
            continue
        yield from (target for target in names if target in modules)
