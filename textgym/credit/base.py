"""What a credit assigner is, and the arithmetic that all of them share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from textgym.credit.checks import check_beta, check_gamma
from textgym.credit.start import (
    Start,
    check_start,
    less_start_values,
    prompt_scores,
    start_readouts,
)
from textgym.errors import InvalidArgumentError
from textgym.models import Readout, RewardModel, ScoredCompletions
from textgym.models.checks import check_supports

__all__ = [
    "CreditAssigner",
    "HindsightCredit",
    "WeightedCredit",
    "close_residual",
    "redistribute",
    "shares",
    "steps_to_go",
]


class CreditAssigner(ABC):
    """Splits the score of finished completions among their tokens.

    At gamma = 1 the credits of a completion sum to its score, so every trajectory keeps its
    return. At gamma < 1 their discounted sum equals the discounted score. With
    ``start="prompt"`` either sum is lower by the start value, a constant per prompt.

    Attributes:
        name: Its id, for the registry and the command line.
        label: Its name for people, in tables and plots. A class without a label shows its id.
        paper: Its source.
        causal: Whether the credit of a token depends only on the text up to that token; what the
            last token receives is exempt. Hindsight credit (False) also leaves returns unchanged,
            but it is not potential-based shaping: its potential would depend on tokens that do not
            exist yet. Methods that learn from the reward to go therefore follow a different
            gradient.
        signed: Whether the credits within one completion may differ in sign.
        sums_to: What the method's own numbers sum to, before the last token receives whatever is
            missing.
        cost: Extra work for a completion of T tokens, on top of the forward pass that scores it.
        readouts: What the reward model must read out; see :mod:`textgym.models.readouts`.
        start: What returns are measured from. "zero": the score is shared out whole. "prompt": what
            the prompt alone is worth is taken off first; see :meth:`start_values`.
        total: What the credits sum to at gamma = 1, in words.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    paper: ClassVar[str] = "none"
    causal: ClassVar[bool]
    signed: ClassVar[bool]
    sums_to: ClassVar[str] = "score"
    cost: ClassVar[str] = "none"
    readouts: frozenset[Readout] = frozenset()
    start: Start = "zero"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "name" in own and "label" not in own:  # otherwise it would show its parent's label
            cls.label = cls.name

    @property
    def needs_causal_reward_model(self) -> bool:
        """Whether the reward model must not look ahead of a token."""
        return False

    @property
    def total(self) -> str:
        """What the credits of a completion sum to at gamma = 1, in words."""
        return "score" if self.start == "zero" else "score - prompt score"

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """What the return of each completion begins at.

        The discounted sum of the credits, Σ_t γ^(t-1) credit_t, is γ^(T-1)·R minus this value, for
        a completion of T tokens with score R.

        Args:
            scored: Completions with the read-outs that the assigner needs.

        Returns:
            float32, shape (batch,): 0 with ``start="zero"``, and with ``start="prompt"`` the score
            of each prompt alone.
        """
        if self.start == "zero":
            return torch.zeros_like(scored.score)
        return prompt_scores(scored)

    def check_reward_model(self, reward_model: RewardModel) -> None:
        """Check that the reward model provides what this assigner needs.

        Raises:
            InvalidArgumentError: If it does not.
        """
        check_supports(reward_model, self.readouts)

    def forward_passes(self, num_tokens: int) -> int:
        """Extra forward passes for a completion of ``num_tokens`` tokens."""
        return 0

    def backward_passes(self, num_tokens: int) -> int:
        """Backward passes for a completion of ``num_tokens`` tokens."""
        return 0

    @abstractmethod
    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the credit of every token.

        Args:
            scored: Finished completions of at least one token each, with the read-outs that the
                assigner needs.

        Returns:
            Credit, float32, shape (batch, num_tokens), 0 outside the completion.
        """

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({arguments})"


class HindsightCredit(CreditAssigner):
    """Credit β·a_t·γ^(T-t); the last token also gets whatever is then missing for the score.

    a_t is what the method attributes to token t, in units of the score. Thanks to the factor
    γ^(T-t), a token contributes β·a_t·γ^T to the discounted return wherever it stands: discounting
    favours neither early nor late credit.

    A subclass with a constructor of its own sets ``readouts`` before it calls this one, which adds
    what ``start`` needs.

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        start: "zero" shares out the score; "prompt" shares out the score minus that of the prompt
            alone, which no token earned. It needs the prefix scores.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    causal = False

    def __init__(self, beta: float = 0.8, gamma: float = 1.0, *, start: Start = "zero") -> None:
        self.beta = check_beta(beta)
        self.gamma = check_gamma(gamma)
        self.start = check_start(start)
        self.readouts |= start_readouts(start)

    @abstractmethod
    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """How much each token contributed to the score, shape (batch, num_tokens).

        Values outside the completion are ignored. ``scored.score`` is what is to be shared out:
        with ``start="prompt"`` it is the score minus the start value.
        """

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the credit of every token; see :class:`CreditAssigner`."""
        if self.start != "zero":
            scored = less_start_values(scored, self.start_values(scored), self.gamma)
        attributions = self.attributions(scored)
        return redistribute(
            attributions, scored.score, scored.completion_mask, self.beta, self.gamma
        )


class WeightedCredit(HindsightCredit):
    """Hindsight credit whose attributions are shares of the score, a_t = α_t·R.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        start: See :class:`HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.
    """

    signed = False

    @abstractmethod
    def weights(self, scored: ScoredCompletions) -> Tensor:
        """Non-negative weights, shape (batch, num_tokens).

        They need not be normalised. Values outside the completion are ignored.
        """

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """Normalised weights times the score, shape (batch, num_tokens)."""
        return shares(self.weights(scored), scored.completion_mask) * scored.score[:, None]


def steps_to_go(completion_mask: Tensor) -> Tensor:
    """Count the tokens that follow each token of a completion: T - t for t = 1 … T.

    Args:
        completion_mask: Shape (batch, num_tokens), bool.

    Returns:
        int64, shape (batch, num_tokens), 0 at the last token and outside the completion.

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


def shares(weights: Tensor, completion_mask: Tensor) -> Tensor:
    """Keep the weights of the completion and normalise them.

    Args:
        weights: Non-negative, shape (batch, num_tokens).
        completion_mask: Shape (batch, num_tokens), bool.

    Returns:
        float32, same shape. Each row sums to 1; where a completion has no weight at all, its row
        is 0.

    >>> shares(torch.tensor([[0.5, 0.1, 0.4]]), torch.tensor([[False, True, True]]))
    tensor([[0.0000, 0.2000, 0.8000]])
    """
    weights = weights.float().masked_fill(~completion_mask, 0.0)
    total = weights.sum(dim=1, keepdim=True)
    has_weight = total > torch.finfo(total.dtype).tiny
    return torch.where(has_weight, weights / total.masked_fill(~has_weight, 1.0), 0.0)


def redistribute(
    attributions: Tensor, score: Tensor, completion_mask: Tensor, beta: float, gamma: float
) -> Tensor:
    """Pay a share of the attributions and leave the rest of the score on the last token.

    The credit of token t is β·a_t·γ^(T-t). If the attributions sum to the score, a_t = α_t·R, the
    rest is (1-β)·R, and at γ = 1 this is the credit of Chan et al. (2024, arXiv 2402.00782).

    Args:
        attributions: In units of the score, shape (batch, num_tokens).
        score: Shape (batch,).
        completion_mask: Shape (batch, num_tokens), bool.
        beta: Share of the attributions to pay, in [0, 1].
        gamma: Discount factor, in (0, 1].

    Returns:
        Credit, float32, shape (batch, num_tokens), 0 outside the completion.
    """
    attributions = beta * attributions.float().masked_fill(~completion_mask, 0.0)
    # Seen from the last token, a credit is worth its attribution: the discounts cancel. So the rest
    # is found without them; with them, far from the last token, it would be 0 times infinity.
    credit = close_residual(attributions, score, completion_mask)
    return credit * gamma ** steps_to_go(completion_mask)


def close_residual(credit: Tensor, score: Tensor, completion_mask: Tensor) -> Tensor:
    """Give the last token what is missing for the sum to equal the score.

    Args:
        credit: Shape (batch, num_tokens), 0 outside the completion.
        score: Shape (batch,).
        completion_mask: Shape (batch, num_tokens), bool.

    Returns:
        Credit, same shape.
    """
    is_last = completion_mask & (steps_to_go(completion_mask) == 0)
    return credit + is_last * (score[:, None] - credit.sum(dim=1, keepdim=True))
