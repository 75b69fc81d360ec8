"""What a credit assigner is, and the arithmetic that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models.completions import ScoredCompletions

__all__ = [
    "CreditAssigner",
    "check_beta",
    "check_gamma",
    "close_residual",
    "redistribute",
    "steps_to_go",
]


class CreditAssigner(ABC):
    """Shares the score of finished completions out over their tokens.

    With gamma = 1 the credits of a completion sum to its score, so every trajectory keeps its
    return. With gamma < 1 it is their discounted sum that equals the discounted score.

    Attributes:
        name: The name by which the command line and the benchmark find it.
        paper: Where it comes from.
        causal: Whether the credit of a token depends on the text up to that token alone, except
            for what the last token receives. Hindsight credit (False) leaves returns unchanged
            too, but is not potential-based shaping: its potential would depend on tokens that do
            not exist yet, so methods that learn from the reward to go see another gradient.
        signed: Whether credits within one completion may differ in sign.
        readouts: What the reward model must read out; see :data:`textgym.models.READOUTS`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    causal: ClassVar[bool]
    signed: ClassVar[bool]
    readouts: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs_causal_reward_model(self) -> bool:
        """Whether the reward model must not look ahead of a token."""
        return False

    @abstractmethod
    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the credit of every token.

        Args:
            scored: Finished completions of at least one token each, with the read-outs that the
                assigner needs.

        Returns:
            float32 credit, shape (batch, num_tokens), 0 outside the completion.
        """


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


def steps_to_go(completion_mask: Tensor) -> Tensor:
    """Number of tokens that follow each token of a completion: T - t for t = 1 … T.

    Args:
        completion_mask: Shape (batch, num_tokens), bool.

    Returns:
        int64, shape (batch, num_tokens): 0 at the last token; 0 outside the completion too.

    Raises:
        InvalidArgumentError: If a completion has no token.
    """
    if not bool(completion_mask.any(dim=1).all()):
        raise InvalidArgumentError(
            "completion_mask",
            completion_mask.sum(dim=1).tolist(),
            "every completion must have at least one token to give credit to",
        )
    after = completion_mask.flip(1).cumsum(1).flip(1) - 1
    return after.masked_fill(~completion_mask, 0)


def redistribute(
    weights: Tensor, score: Tensor, completion_mask: Tensor, beta: float, gamma: float
) -> Tensor:
    """Share a part of the score out by weights and leave the rest on the last token.

    The credit of token t is β·α_t·R·γ^(T-t) + (1-β)·R·1[t = T], at γ = 1 that of Chan et al. (2024,
    arXiv 2402.00782), with α the weights, cut to the completion and normalised. The factor γ^(T-t)
    keeps the discounted return of every trajectory; without it a discount would reward early
    credit. What rounding leaves, or all of β·R where the completion has no weight at all, goes to
    the last token.

    Args:
        weights: Non-negative weights, shape (batch, num_tokens).
        score: Shape (batch,).
        completion_mask: Shape (batch, num_tokens), bool.
        beta: Share of the score to redistribute, in [0, 1].
        gamma: Discount factor, in (0, 1].

    Returns:
        float32 credit, shape (batch, num_tokens), 0 outside the completion.
    """
    to_go = steps_to_go(completion_mask)
    weights = weights.float().masked_fill(~completion_mask, 0.0)
    total = weights.sum(dim=1, keepdim=True)
    has_weight = total > torch.finfo(total.dtype).tiny
    shares = torch.where(has_weight, weights / total.masked_fill(~has_weight, 1.0), 0.0)
    credit = beta * shares * score[:, None] * gamma**to_go
    return close_residual(credit, score, completion_mask, gamma)


def close_residual(
    credit: Tensor, score: Tensor, completion_mask: Tensor, gamma: float = 1.0
) -> Tensor:
    """Give the last token what is missing for the (discounted) sum to equal the score.

    Args:
        credit: Shape (batch, num_tokens), 0 outside the completion.
        score: Shape (batch,).
        completion_mask: Shape (batch, num_tokens), bool.
        gamma: Discount factor: Σ_t γ^t credit_t is made equal to γ^T R.

    Returns:
        Credit of the same shape.
    """
    to_go = steps_to_go(completion_mask)
    is_last = completion_mask & (to_go == 0)
    # Seen from the last token, a credit that was paid k steps earlier is worth γ^-k of its value.
    paid = (credit * gamma ** (-to_go.to(credit.dtype))).sum(dim=1, keepdim=True)
    return credit + is_last * (score[:, None] - paid)
