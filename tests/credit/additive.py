"""The simplest reward model: every token has a worth, and the score is their sum.

Its true credit is known: each token earned its worth.
"""

from __future__ import annotations

import torch


class AdditiveRewardModel:
    """A :class:`textgym.models.Scorer` without a network.

    A token's embedding has one component, its worth.

    Args:
        worth: Worth of each token of the vocabulary, shape (vocabulary,), float32.
    """

    device = torch.device("cpu")

    def __init__(self, worth):
        self.worth = worth
        self.num_embeddings = len(worth)

    def read(self, completions, readouts=()):
        assert not readouts
        embeddings = self.embed(completions.input_ids)
        score = self.score_embeddings(embeddings, completions.attention_mask)
        return completions.with_score(score, reward_model=self)

    def embed(self, input_ids):
        return self.worth[input_ids][..., None]

    def score_embeddings(self, embeddings, attention_mask):
        return (embeddings[..., 0] * attention_mask).sum(1)
