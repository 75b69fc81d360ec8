"""Causal shaping as credit: for a finished completion, potential differences from one forward."""

from __future__ import annotations

import torch
from torch import Tensor

from textgym.credit.base import CreditAssigner, check_gamma, steps_to_go
from textgym.errors import InvalidArgumentError
from textgym.models.completions import ScoredCompletions
from textgym.potentials import AttentionWeightedPrefixScore, Potential

__all__ = ["ShapingCredit", "shape"]


def shape(potential: Tensor, score: Tensor, completion_mask: Tensor, gamma: float) -> Tensor:
    """Rewards of an episode under potential-based shaping: r_t + γΦ_t - Φ_{t-1}.

    Φ is taken as 0 before the first token and, since the episode ends there, at the last one
    (Grześ, 2017). A completion of three tokens with potentials [1, 3, 2] and score 2 is paid
    [1, 2, -1] at γ = 1: the last token gets 2 + 0 - 3.

    Args:
        potential: Φ after each token, shape (batch, num_tokens).
        score: Shape (batch,), paid at the last token.
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row.
        gamma: Discount factor, in (0, 1].

    Returns:
        float32, shape (batch, num_tokens), 0 outside the completion.
    """
    is_last = completion_mask & (steps_to_go(completion_mask) == 0)
    after = potential.masked_fill(~completion_mask | is_last, 0.0)
    before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)
    rewards = gamma * after - before + is_last * score[:, None]
    return rewards.masked_fill(~completion_mask, 0.0)


class ShapingCredit(CreditAssigner):
    """What :class:`textgym.wrappers.AttentionShaping` pays step by step, from one forward pass.

    An agent that collects whole episodes can take the shaping reward this way, at no cost beyond
    the scoring of the finished completion. With γ < 1 the discounted sum of the shaping terms is 0
    too (Φ is 0 at the start and at the end), so the discounted return stays that of the score.

    Args:
        potential: The potential; the attention-weighted prefix score by default.
        beta: Factor on the potential, any finite number; 0 is sparse.
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    name = "shaping"
    paper = "Ng, Harada & Russell 1999; after arXiv 2402.00782"
    causal = True
    signed = True

    def __init__(
        self, potential: Potential | None = None, beta: float = 1.0, gamma: float = 1.0
    ) -> None:
        self.potential = AttentionWeightedPrefixScore() if potential is None else potential
        if not isinstance(self.potential, Potential):
            raise InvalidArgumentError(
                "potential", potential, "pass a textgym.potentials.Potential"
            )
        if not abs(beta) < float("inf"):
            raise InvalidArgumentError("beta", beta, "must be a finite number")
        self.beta = float(beta)
        self.gamma = check_gamma(gamma)

    @property
    def readouts(self) -> frozenset[str]:  # type: ignore[override]
        """What the potential needs."""
        return self.potential.readouts

    @property
    def needs_causal_reward_model(self) -> bool:
        """Whether the potential does."""
        return self.potential.needs_causal_reward_model

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`CreditAssigner`."""
        potential = self.beta * self.potential(scored)
        return shape(potential, scored.score, scored.completion_mask, self.gamma)

    def __repr__(self) -> str:
        return f"ShapingCredit({self.potential!r}, beta={self.beta}, gamma={self.gamma})"
