"""Credit assigners: per-token shares of a finished completion's score."""

from __future__ import annotations

from typing import Any

from textgym.credit.base import CreditAssigner
from textgym.credit.hindsight import AttentionCredit, SparseCredit, UniformCredit
from textgym.credit.shaping import ShapingCredit
from textgym.errors import InvalidArgumentError

__all__ = [
    "CREDIT_ASSIGNERS",
    "AttentionCredit",
    "CreditAssigner",
    "ShapingCredit",
    "SparseCredit",
    "UniformCredit",
    "get_credit_assigner",
]

CREDIT_ASSIGNERS: dict[str, type[CreditAssigner]] = {
    assigner.name: assigner
    for assigner in (SparseCredit, UniformCredit, AttentionCredit, ShapingCredit)
}
"""The credit assigners by name."""


def get_credit_assigner(credit: str | CreditAssigner, **arguments: Any) -> CreditAssigner:
    """Find a credit assigner by name.

    Args:
        credit: A name of :data:`CREDIT_ASSIGNERS`, or an assigner, which is returned as it is.
        **arguments: Arguments of the assigner's constructor.

    Raises:
        InvalidArgumentError: If the name is unknown.

    >>> get_credit_assigner("attention", beta=0.5)
    AttentionCredit(beta=0.5, gamma=1.0)
    """
    if isinstance(credit, CreditAssigner):
        return credit
    if credit not in CREDIT_ASSIGNERS:
        raise InvalidArgumentError(
            "credit", credit, f"choose one of {', '.join(sorted(CREDIT_ASSIGNERS))}"
        )
    return CREDIT_ASSIGNERS[credit](**arguments)
