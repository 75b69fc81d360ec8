"""Hindsight credit: Attention-Based Credit and the baselines it must be compared with."""

from __future__ import annotations

from torch import Tensor

from textgym.credit.base import CreditAssigner, check_beta, check_gamma, redistribute
from textgym.models.completions import ScoredCompletions

__all__ = ["AttentionCredit", "SparseCredit", "UniformCredit"]


class SparseCredit(CreditAssigner):
    """All of the score on the last token: what the environment itself pays.

    A completion of five tokens with score 2 gets [0, 0, 0, 0, 2].
    """

    name = "sparse"
    paper = "none"
    causal = True
    signed = False

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`CreditAssigner`."""
        zeros = scored.score.new_zeros(scored.input_ids.shape)
        return redistribute(zeros, scored.score, scored.completion_mask, 0.0, 1.0)

    def __repr__(self) -> str:
        return "SparseCredit()"


class _WeightedCredit(CreditAssigner):
    """Credit β·α_t·R + (1-β)·R·1[t = T] for some weights α.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    causal = False
    signed = False

    def __init__(self, beta: float = 0.8, gamma: float = 1.0) -> None:
        self.beta = check_beta(beta)
        self.gamma = check_gamma(gamma)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """Weights before they are cut to the completion and normalised, (batch, num_tokens)."""
        raise NotImplementedError

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`CreditAssigner`."""
        return redistribute(
            self.weights(scored), scored.score, scored.completion_mask, self.beta, self.gamma
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(beta={self.beta}, gamma={self.gamma})"


class UniformCredit(_WeightedCredit):
    """The same share for every token: densification without any information.

    A completion of five tokens with score 2 gets, at β = 0.5, [0.2, 0.2, 0.2, 0.2, 1.2].

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    name = "uniform"
    paper = "none"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """One for every token."""
        return scored.completion_mask.float()


class AttentionCredit(_WeightedCredit):
    """Attention-Based Credit (ABC): shares by the reward model's own attention.

    The weights are the last layer's attention row at the position that the score is read from,
    averaged over the heads, cut to the completion and normalised (Chan et al., 2024, arXiv
    2402.00782). A completion of five tokens with score 2 and attention
    [.1, .4, .1, .2, .2] gets, at β = 0.5, [0.1, 0.4, 0.1, 0.2, 1.2]. Where all attention lies on
    the prompt, the score stays on the last token.

    Cost: nothing beyond the forward pass that gives the score. Guarantee: at γ = 1 every
    completion keeps its return, so the ranking of policies and the optimum are unchanged; the
    gradient of methods that learn from the reward to go is not.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    name = "attention"
    paper = "arXiv 2402.00782"
    readouts = frozenset({"attention"})

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row."""
        assert scored.attention is not None
        return scored.attention
