"""Potentials: functions of the state that say how well the text so far stands.

Paying the difference γΦ(s') - Φ(s) at every step leaves the optimal policies unchanged (Ng, Harada
& Russell, 1999), provided that Φ depends on the state alone and is 0 at the end of an episode
(Grześ, 2017). Both potentials here are measured from the prompt's own score, so that they are 0
at the start as well and the prompt's mood is not paid to the first token; at γ = 1 the rewards of
an episode then still sum to its score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from textgym.models.completions import ScoredCompletions

__all__ = ["AttentionWeightedPrefixScore", "Potential", "PrefixScore"]


class Potential(ABC):
    """Φ of every state that a batch of completions passed through.

    Attributes:
        name: Short name.
        paper: Where it comes from.
        readouts: What the reward model must read out; see :data:`textgym.models.READOUTS`.
        needs_causal_reward_model: Whether it is a function of the state only if the reward model
            does not look ahead.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    readouts: ClassVar[frozenset[str]]
    needs_causal_reward_model: ClassVar[bool]

    @abstractmethod
    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential after each token of the completions.

        Args:
            scored: Completions with the read-outs that the potential needs; rows without any
                generated token are allowed.

        Returns:
            float32, shape (batch, num_tokens): Φ of the state that ends with this token, 0 outside
            the completion. The value at the last token is Φ before it is known that the episode
            ended there; whoever uses it puts 0 in its place at the end of an episode.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _start_score(scored: ScoredCompletions) -> Tensor:
    """Score of each prompt alone, shape (batch, 1)."""
    assert scored.prefix_scores is not None
    num_tokens = scored.input_ids.shape[1]
    index = torch.arange(num_tokens, device=scored.input_ids.device)
    last = torch.where(scored.prompt_mask, index, -1).max(dim=1, keepdim=True).values
    start = scored.prefix_scores.gather(1, last.clamp(min=0))
    return start.masked_fill(last < 0, 0.0)


class PrefixScore(Potential):
    """The reward model's score of the text so far: Φ_t = s_t - s_0.

    For a finished completion the differences of this potential are the credit of RED (Li et al.,
    2024, arXiv 2411.08302), s_t - s_{t-1}.
    """

    name = "prefix-score"
    paper = "arXiv 2411.08302"
    readouts = frozenset({"prefix_scores"})
    needs_causal_reward_model = False

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`."""
        assert scored.prefix_scores is not None
        potential = scored.prefix_scores - _start_score(scored)
        return potential.masked_fill(~scored.completion_mask, 0.0)


class AttentionWeightedPrefixScore(Potential):
    """The attention-weighted mean of the prefix scores: Φ_t = Σ_{i≤t} α_i^(t) s_i - s_0.

    α^(t) is the last layer's attention row of token t, averaged over the heads, cut to the
    completion and normalised; s_i is the score of the text that ends with token i. It is the
    causal form of Attention-Based Credit (Chan et al., 2024, arXiv 2402.00782). Where a token pays
    all its attention to the prompt, there are no weights to normalise, and its own prefix score
    is taken.
    """

    name = "attention-weighted-prefix-score"
    paper = "after arXiv 2402.00782"
    readouts = frozenset({"prefix_scores", "attention_map"})
    needs_causal_reward_model = True

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`."""
        assert scored.prefix_scores is not None
        assert scored.attention_map is not None
        weights = scored.attention_map * scored.completion_mask[:, None, :]
        total = weights.sum(dim=2)  # (batch, num_tokens)
        mean = (weights * scored.prefix_scores[:, None, :]).sum(dim=2)
        on_prompt = total <= torch.finfo(total.dtype).tiny
        mean = torch.where(on_prompt, scored.prefix_scores, mean / total.masked_fill(on_prompt, 1))
        return (mean - _start_score(scored)).masked_fill(~scored.completion_mask, 0.0)
