"""Docstrings and signatures of the API reference: as Python sees them, with roles as links."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe

from making import reference
from making.docstrings import markdown, scalars_as_table

_LISTED_AT_IMPORT = re.compile(r"^ *arguments: The fields of ", re.MULTILINE)


class RuntimeDocstrings(griffe.Extension):
    """Takes arguments that are listed when a module is imported, and turns roles into Markdown."""

    def __init__(self) -> None:
        super().__init__()
        self._names = {
            f"{module}.{name}"
            for module in reference.MODULES
            for name in reference.documented_names(module)
        }

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite one docstring, and the signature where a decorator makes it."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if isinstance(obj, griffe.Class | griffe.Function) and _LISTED_AT_IMPORT.search(text):
            documented = getattr(importlib.import_module(obj.module.path), obj.name)
            text = inspect.cleandoc(documented.__doc__)
            function = obj["__init__"] if isinstance(obj, griffe.Class) else obj
            function.parameters = _parameters(documented)
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # griffe's name
        obj.docstring.value = markdown(scalars_as_table(text), self._link)

    def _link(self, name: str) -> str | None:
        return f"[`{name}`][{name}]" if name in self._names else None


def _parameters(documented: Any) -> griffe.Parameters:
    parameters = inspect.signature(documented).parameters.values()
    return griffe.Parameters(
        *(
            griffe.Parameter(
                one.name,
                kind=griffe.ParameterKind(one.kind.description),
                annotation=inspect.formatannotation(one.annotation),
                default=None if one.default is one.empty else repr(one.default),
            )
            for one in parameters
        )
    )
