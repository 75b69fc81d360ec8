"""The exceptions that textgym raises on bad input.

Each one is also a built-in exception, so that ``except ValueError`` keeps working, and each
message names the argument, the value received and the remedy.
"""

from __future__ import annotations

import pickle
from typing import Any

__all__ = ["InvalidArgumentError", "MissingDependencyError", "NumericalError", "TextgymError"]


class TextgymError(Exception):
    """Base class of every error that textgym raises on purpose.

    Errors travel between processes. Of an attribute that cannot be pickled, its ``repr`` does.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        attributes = {name: _portable(value) for name, value in vars(self).items()}
        return _restore, (type(self), self.args, attributes)


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


class NumericalError(TextgymError, ArithmeticError):
    """A number is NaN or infinite, so that nothing can be learned from it.

    Args:
        quantity: What the number is.
        value: The number.
        where: Where it was met.
        remedy: What to do.
    """

    def __init__(self, quantity: str, value: float, where: str, remedy: str) -> None:
        super().__init__(f"{quantity}={value} {where}: {remedy}")
        self.quantity = quantity
        self.value = value
        self.where = where
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


def _restore(kind: type[TextgymError], args: tuple[Any, ...], attributes: Any) -> TextgymError:
    error = kind.__new__(kind, *args)  # Not __init__, which takes other arguments.
    vars(error).update(attributes)
    return error


def _portable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:  # Objects of all kinds refuse in all kinds of ways.
        return repr(value)
    return value
