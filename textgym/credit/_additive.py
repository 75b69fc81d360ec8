"""The simplest reward model: every token is worth something, and the score is the sum.

It is the case whose answer is known: each token's share is what the token is worth. The examples
and the tests of the methods that have further texts scored use it.
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from textgym.models import Completions, Readout, RewardModel, ScoredCompletions

__all__ = ["AdditiveRewardModel"]


class AdditiveRewardModel(RewardModel):
    """A reward model without a network: a token's embedding has one component, its worth.

    Args:
        worth: What each token of the vocabulary is worth, shape (vocabulary,), float32.
    """

    device = torch.device("cpu")  # type: ignore[assignment]

    def __init__(self, worth: Tensor) -> None:
        embedding = torch.nn.Embedding.from_pretrained(worth[:, None])
        self.model: Any = SimpleNamespace(get_input_embeddings=lambda: embedding)

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Score a batch; there is nothing else to read out."""
        assert not readouts
        masks = (completions.attention_mask, completions.completion_mask)
        score = self.score_embeddings(self.embed(completions.input_ids), masks[0])
        return ScoredCompletions(completions.input_ids, *masks, score=score, reward_model=self)

    def score_embeddings(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """The sum over the tokens, shape (batch,)."""
        return (embeddings[..., 0] * attention_mask).sum(1)
