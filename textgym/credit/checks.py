"""Checks of the arguments that several methods share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from textgym.checks import check_number
from textgym.errors import InvalidArgumentError
from textgym.models import ScoredCompletions

__all__ = ["check_beta", "check_factor", "check_finite_credit", "check_gamma", "check_id"]


def check_beta(beta: float) -> float:
    """Return ``beta``, the share of the score to redistribute.

    Raises:
        InvalidArgumentError: If it is not a number in [0, 1].
    """
    remedy = "must be a number that lies between 0 (sparse) and 1 (all of it)"
    return check_number("beta", beta, least=0.0, most=1.0, remedy=remedy)


def check_factor(beta: float) -> float:
    """Return ``beta``, the factor on a potential.

    Raises:
        InvalidArgumentError: If it is not a finite number.
    """
    return check_number("beta", beta)


def check_gamma(gamma: float) -> float:
    """Return ``gamma``, the discount factor.

    Raises:
        InvalidArgumentError: If it is not a number in (0, 1].
    """
    remedy = "must be a number greater than 0 and at most 1"
    return check_number("gamma", gamma, above=0.0, most=1.0, remedy=remedy)


def check_id(new: type, registered: Mapping[str, type]) -> str:
    """Return the ``name`` of a class that is to be registered.

    Raises:
        InvalidArgumentError: If the class has no name, or one with a colon, or one that is taken.
    """
    name = getattr(new, "name", "")
    if not isinstance(name, str) or not name or ":" in name:
        raise InvalidArgumentError("name", name, f"give {new.__name__} a name, without a colon")
    known = registered.get(name)
    # A module that runs twice, as under `python -m`, defines its classes twice: that is allowed.
    if known is not None and known.__name__ != new.__name__:
        raise InvalidArgumentError("name", name, f"is taken by {known.__name__}")
    return name


def check_finite_credit(credit: Tensor, scored: ScoredCompletions, source: str) -> None:
    """Make sure that every token of the completions has a finite credit.

    Args:
        credit: Shape (batch, num_tokens); values outside the completions do not matter.
        scored: The completions.
        source: What computed the credit, for the error.

    Raises:
        InvalidArgumentError: If a token's credit is NaN or infinite. The error has the token ids of
            the first such completion.
    """
    wrong = ~torch.isfinite(credit) & scored.completion_mask.to(credit.device)
    if not bool(wrong.any()):
        return
    row, column = wrong.nonzero()[0].tolist()
    ids = scored.input_ids[row][scored.completion_mask[row]].tolist()
    raise InvalidArgumentError(
        "credit",
        float(credit[row, column]),
        f"{source} gave it to a token of the completion {ids} with score "
        f"{float(scored.score[row]):g}; every token needs a finite number",
    )
