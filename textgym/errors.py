"""The exceptions that textgym raises on bad input.

Each one is also a built-in exception, so that ``except ValueError`` keeps working, and each
message names the argument, the value received and the remedy.
"""

from __future__ import annotations

__all__ = ["InvalidArgumentError", "MissingDependencyError", "TextgymError"]


class TextgymError(Exception):
    """Base class of every error that textgym raises on purpose."""


class InvalidArgumentError(TextgymError, ValueError):
    """An argument has a value that cannot be used.

    Args:
        argument: Name of the offending argument, as the caller wrote it.
        value: The value received.
        remedy: What is wrong with the value and what to pass instead.
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(f"{argument}={shown}: {remedy}")
        self.argument = argument
        self.value = value
        self.remedy = remedy


class MissingDependencyError(TextgymError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: Name of the missing package on PyPI.
        extra: The extra of textgym that installs it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: "
            f'pip install "textgym[{extra}]"'
        )
        self.package = package
        self.extra = extra
