"""Numbers that would end a training later, far from where they came from: NaN and infinities.

They are looked for where they enter, in what an environment pays (``Rollout.check_finite``) and in
what a policy says, and once more in the gradient. The error undoes the iteration, so the weights
never see them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from textgym.errors import NumericalError

__all__ = ["check_gradient_norm", "check_probabilities"]


def check_probabilities(total: Tensor) -> None:
    """Make sure that the probabilities of each row sum to a number.

    Args:
        total: The sums, (batch,).

    Raises:
        NumericalError: If not; it names the row.
    """
    if not total.isfinite().all():
        row = int((~total.isfinite()).nonzero()[0])
        raise NumericalError(
            "probability of the next token",
            total[row].item(),
            f"in row {row}",
            "the policy's logits are NaN or infinite, so its weights have diverged: go on from an "
            "earlier checkpoint, with a lower learning_rate or a higher kl_coef",
        )


def check_gradient_norm(norm: Tensor, terms: Mapping[str, Tensor]) -> None:
    """Make sure that a gradient is finite.

    Args:
        norm: Of the gradient.
        terms: Parts of the loss that it is the gradient of, by name.

    Raises:
        NumericalError: If not; it names the terms that are not finite either.
    """
    if norm.isfinite():
        return
    wrong = [f"{name} is {x.item():g}" for name, x in terms.items() if not x.isfinite().all()]
    raise NumericalError(
        "norm of the gradient",
        norm.item(),
        f"where {' and '.join(wrong)}" if wrong else "though the loss is finite",
        "scores, credit or probability ratios are too large for float32: scale the score, or take "
        "a lower learning_rate, fewer epochs or max_approx_kl",
    )
