"""Causal shaping as credit: all potential differences of a finished completion at once."""

from __future__ import annotations

import torch
from torch import Tensor

from textgym.credit.base import CreditAssigner, steps_to_go
from textgym.credit.checks import check_factor, check_gamma
from textgym.credit.potentials import (
    AttentionWeightedPrefixScore,
    Potential,
    PrefixScore,
    StateFunction,
    get_potential,
)
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start, check_start
from textgym.models import ScoredCompletions

__all__ = ["PrefixScoreCredit", "ShapingCredit", "shape"]


def shape(
    potential: Tensor,
    score: Tensor,
    completion_mask: Tensor,
    gamma: float,
    start_values: Tensor | float = 0.0,
) -> Tensor:
    """Compute the rewards of an episode under potential-based shaping, r_t + γΦ_t - Φ_{t-1}.

    Φ counts as 0 after the last token, because the episode ends there (Grześ, 2017). At γ = 1 a
    completion of three tokens with potentials [1, 3, 2] and score 2 is paid [1, 2, -1]; the last
    token gets 2 + 0 - 3. If Φ was .5 before the first token, that one gets .5 instead of 1.

    Args:
        potential: Φ after each token, shape (batch, num_tokens).
        score: Shape (batch,), paid at the last token.
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row.
        gamma: Discount factor, in (0, 1].
        start_values: Φ before the first token, shape (batch,), or one number for all.

    Returns:
        float32, shape (batch, num_tokens), 0 outside the completion.
    """
    is_first = completion_mask & (completion_mask.cumsum(dim=1) == 1)
    is_last = completion_mask & (steps_to_go(completion_mask) == 0)
    after = potential.masked_fill(~completion_mask | is_last, 0.0)
    before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=1)
    start_values = torch.as_tensor(start_values, device=after.device).reshape(-1, 1)
    before = torch.where(is_first, start_values, before)
    rewards = gamma * after - before + is_last * score[:, None]
    return rewards.masked_fill(~completion_mask, 0.0)


@register_credit_assigner
class ShapingCredit(CreditAssigner):
    """Causal shaping: what :class:`textgym.wrappers.PotentialShaping` pays step by step.

    credit_t = β(γΦ_t - Φ_{t-1}) + R·1[t = T], with Φ = 0 at the end (Ng, Harada & Russell, 1999;
    Grześ, 2017). Agents that collect whole episodes can get the shaping reward from here, in one
    forward pass.

    Cost: that of the potential. The default potential needs no extra pass.

    Guarantee: optimal policies stay optimal for every γ, and the expected policy gradient stays the
    same. The discounted sum of the shaping terms is -βΦ_0: 0 if Φ is 0 at the start, so that every
    completion keeps its discounted return, and otherwise a constant per prompt.

    Args:
        potential: An id, a potential, or a function of the state; see
            :func:`textgym.credit.get_potential`. None is the attention-weighted prefix score.
        beta: Factor on the potential, any finite number; 0 is sparse.
        gamma: Discount factor of the agent, in (0, 1].
        start: "zero" measures Φ from its value at the prompt alone, so that Φ_0 = 0. What the
            prompt is worth then arrives with the score, at the last token. "prompt" takes Φ as it
            is: the first token is paid β(γΦ_1 - Φ_0), and the last R - βΦ_{T-1}.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        Φ - Φ_0 after the five tokens is 0, 1, .5, .5 and 1.5. The last value does not count.

        >>> from textgym.credit import ShapingCredit
        >>> from textgym.models import Completions, PrefixScores
        >>> prefix_scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {PrefixScores(): [prefix_scores]})
        >>> ShapingCredit("prefix-score")(scored)[0, 2:]
        tensor([ 0.0000,  1.0000, -0.5000,  0.0000,  1.5000])

        The prompt alone scores .5. Without it, the last token gets 1 and the credits sum to 1.5.

        >>> ShapingCredit("prefix-score", start="prompt")(scored)[0, 2:]
        tensor([ 0.0000,  1.0000, -0.5000,  0.0000,  1.0000])
    """

    name = "shaping"
    label = "causal shaping"
    paper = "after arXiv 2402.00782"
    causal = True
    signed = True
    readouts = AttentionWeightedPrefixScore.readouts

    def __init__(
        self,
        potential: str | Potential | StateFunction | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        *,
        start: Start = "zero",
    ) -> None:
        self.potential = get_potential(potential)
        self.beta = check_factor(beta)
        self.gamma = check_gamma(gamma)
        self.start = check_start(start)
        self.readouts = self.potential.readouts

    @property
    def needs_causal_reward_model(self) -> bool:
        """Whether the potential needs a reward model that does not look ahead."""
        return self.potential.needs_causal_reward_model

    @property
    def total(self) -> str:
        """What the credits of a completion sum to at gamma = 1, in words."""
        return "score" if self.start == "zero" else "score - β·Φ(prompt)"

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """βΦ_0, shape (batch,); 0 with ``start="zero"``. See :class:`CreditAssigner`."""
        if self.start == "zero":
            return torch.zeros_like(scored.score)
        return self.beta * self.potential.start_values(scored)

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the credit of every token; see :class:`CreditAssigner`."""
        potential = self.potential(scored)
        if self.start == "zero":
            potential = potential - self.potential.start_values(scored)[:, None]
        return shape(
            self.beta * potential,
            scored.score,
            scored.completion_mask,
            self.gamma,
            self.start_values(scored),
        )


@register_credit_assigner
class PrefixScoreCredit(ShapingCredit):
    """RED: each token is paid for how much it changed the reward model's score.

    This is :class:`ShapingCredit` with the potential Φ_t = s_t. At β = γ = 1 the credit of a token
    is s_t - s_{t-1} (Li et al., 2024, arXiv 2411.08302). With ``start="zero"`` the last token also
    gets the prompt's own score s_0.

    Cost: no extra pass if the reward model is a decoder; one forward pass per prefix if it is an
    encoder.

    Guarantee: the same as for :class:`ShapingCredit`.

    Args:
        beta: Factor on the potential, any finite number; 0 is sparse.
        gamma: Discount factor of the agent, in (0, 1].
        start: See :class:`ShapingCredit`; here Φ_0 is the prompt's own score s_0.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        >>> from textgym.credit import PrefixScoreCredit
        >>> from textgym.models import Completions, PrefixScores
        >>> prefix_scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {PrefixScores(): [prefix_scores]})
        >>> PrefixScoreCredit(beta=0.5)(scored)[0, 2:]
        tensor([ 0.0000,  0.5000, -0.2500,  0.0000,  1.7500])
    """

    name = "prefix-score"
    label = "prefix score (RED)"
    paper = "arXiv 2411.08302"
    readouts = PrefixScore.readouts

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, *, start: Start = "zero") -> None:
        super().__init__(PrefixScore(), beta, gamma, start=start)
