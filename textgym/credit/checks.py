"""Checks of the arguments that several methods share."""

from __future__ import annotations

from numbers import Integral

from textgym.errors import InvalidArgumentError

__all__ = ["check_beta", "check_gamma", "check_whole_number"]


def check_beta(beta: float) -> float:
    """Return ``beta``, the share of the score to redistribute.

    Raises:
        InvalidArgumentError: If it is not in [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise InvalidArgumentError("beta", beta, "must lie between 0 (sparse) and 1 (all of it)")
    return float(beta)


def check_gamma(gamma: float) -> float:
    """Return ``gamma``, the discount factor.

    Raises:
        InvalidArgumentError: If it is not in (0, 1].
    """
    if not 0.0 < gamma <= 1.0:
        raise InvalidArgumentError("gamma", gamma, "must be greater than 0 and at most 1")
    return float(gamma)


def check_whole_number(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return ``value`` as a plain integer.

    Args:
        name: The argument's name, for the error.
        value: The number; NumPy integers are welcome.
        least: The smallest number allowed.
        most: The largest number allowed; None for no limit.

    Raises:
        InvalidArgumentError: If it is not a whole number from ``least`` to ``most``.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limits = f"at least {least}" + ("" if most is None else f" and at most {most}")
        raise InvalidArgumentError(name, value, f"must be a whole number of {limits}")
    return int(value)
