"""Reward models trained with and without beginnings of texts, measured on beginnings of texts."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from textgym.models import Completions, PrefixScores, RewardModel
from textgym.reviews import Review, load_reviews
from textgym.reward_training import Labelled, RewardRecipe, train_reward_model
from textgym.reward_training.training import load_base

__all__ = ["LENGTH", "NUM_HELD_OUT", "NUM_TRAIN", "explained", "train"]

NUM_TRAIN, NUM_HELD_OUT = 4800, 600
LENGTH = 48
"""Tokens of a text; longer reviews are cut."""
SHARES = tuple(number / 10 for number in range(1, 11))


def train(prefix_share: float, seed: int) -> pd.DataFrame:
    """A row per share of the text: what the score of so much of it tells.

    Args:
        prefix_share: Share of the training examples that are cut.
        seed: Of the head, the order and the cuts. The texts are the same under all seeds.
    """
    started = time.perf_counter()
    examples = [
        Labelled(one.text, one.label) for one in _evenly(load_reviews("train", "imdb"), NUM_TRAIN)
    ]
    torch.manual_seed(seed)
    model, tokenizer = load_base("embedded", num_labels=2)
    recipe = RewardRecipe(
        epochs=1,
        learning_rate=1e-3,
        batch_size=16,
        max_length=LENGTH,
        prefix_share=prefix_share,
        seed=seed,
    )
    train_reward_model(model, tokenizer, examples, recipe)
    held_out = _evenly(load_reviews("held_out", "imdb"), NUM_HELD_OUT)
    scores = _prefix_scores(RewardModel(model, tokenizer), [one.text for one in held_out])
    signs = np.array([2 * one.label - 1 for one in held_out])
    final = scores[:, -1]
    return pd.DataFrame(
        {
            "share": SHARES,
            "accuracy": ((signs[:, None] * scores) > 0).mean(axis=0).round(4),
            "explained": [round(explained(prefix, final), 4) for prefix in scores.T],
            "r_squared": [round(np.corrcoef(one, final)[0, 1] ** 2, 4) for one in scores.T],
            "seconds": round(time.perf_counter() - started, 1),
        }
    )


def _evenly(reviews: list[Review], number: int) -> list[Review]:
    """So many reviews at equal distances: the data are ordered by label."""
    return [reviews[i * len(reviews) // number] for i in range(number)]


def explained(prefix: NDArray[np.floating], final: NDArray[np.floating]) -> float:
    """Share of the final score's variance that the prefix score explains, taken as it is.

    1 - mean (final - prefix)² / var final: what a critic explains that predicts the score of the
    text so far. Below 0 it is worse than predicting the mean.

    Args:
        prefix: Scores of beginnings, (num_texts,).
        final: Scores of whole texts, (num_texts,).

    >>> explained(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    0.5
    """
    return float(1 - np.square(final - prefix).mean() / final.var())


def _prefix_scores(reward_model: RewardModel, texts: list[str]) -> NDArray[np.float32]:
    """Scores of the beginnings of each text, (num_texts, number of shares)."""
    encoded = reward_model.tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    parts = []
    for start in range(0, len(encoded), 50):
        batch = encoded[start : start + 50]
        completions = Completions.from_lists([[] for _ in batch], batch)
        read = reward_model.read(completions, [PrefixScores()])
        at = torch.tensor([[max(1, round(s * len(ids))) - 1 for s in SHARES] for ids in batch])
        parts.append(read[PrefixScores()].gather(1, at))
    return torch.cat(parts).numpy()
