"""How good a reward model is, on whole texts and on their beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.models import RewardModel
from textgym.reward_training.data import Labelled, Pair

__all__ = ["calibration_error", "evaluate"]

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of a text that are scored."""


def evaluate(
    reward_model: RewardModel, examples: Sequence[Pair] | Sequence[Labelled], max_length: int = 256
) -> dict[str, Any]:
    """Accuracy, calibration and the distribution of the score, on examples not trained on.

    Args:
        reward_model: The reward model, without normalisation of its score.
        examples: Pairs or labelled texts.
        max_length: Longest text in tokens.

    Returns:
        ``accuracy``: by share of the text, of the right order of pairs or the right label.
        ``log_loss`` and ``calibration_error`` of the probabilities that the scores stand for, on
        whole texts. ``score_mean``, ``score_std`` and ``quantiles`` (5, 25, 50, 75 and 95%) of the
        score of whole texts. ``examples``, their number.
    """
    accuracy: dict[str, float] = {}
    margins = scores = np.zeros(0)
    for share in SHARES:
        margins, scores = _margins(reward_model, examples, share, max_length)
        accuracy[f"{share:g}"] = float(((margins > 0) + 0.5 * (margins == 0)).mean())
    probability = 1 / (1 + np.exp(-margins))
    return {
        "examples": len(examples),
        "accuracy": accuracy,
        "log_loss": float(np.logaddexp(0.0, -margins).mean()),
        "calibration_error": calibration_error(probability),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "quantiles": np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist(),
    }


def calibration_error(probability: NDArray[np.floating], num_bins: int = 10) -> float:
    """The expected calibration error (Guo et al., 2017, arXiv 1706.04599).

    Args:
        probability: That the model gave to what was right, shape (num_examples,). Its confidence is
            this or one minus this, whichever is larger.
        num_bins: Equal bins of confidence between .5 and 1.

    Returns:
        The mean distance between confidence and accuracy, weighted by the examples in a bin.

    >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.25]))  # three of four right, at 75%
    0.0
    """
    confidence = np.maximum(probability, 1 - probability)
    bins = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    error = 0.0
    for number in range(num_bins):
        inside = bins == number
        if inside.any():
            gap = (probability[inside] > 0.5).mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    return float(error)


def _margins(
    reward_model: RewardModel,
    examples: Sequence[Pair] | Sequence[Labelled],
    share: float,
    max_length: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The score towards what is right, per example, and all scores."""
    signs, texts = [], []
    for one in examples:
        if isinstance(one, Labelled):
            texts.append(one.text)
            signs.append(2 * one.label - 1)
        else:
            texts += [one.chosen, one.rejected]
    scores = _scores(reward_model, texts, share, max_length)
    if signs:
        return np.array(signs) * scores, scores
    return scores[0::2] - scores[1::2], scores


def _scores(
    reward_model: RewardModel, texts: Sequence[str], share: float, max_length: int
) -> NDArray[np.float64]:
    encoded = reward_model.tokenizer(
        list(texts), truncation=True, max_length=max_length, verbose=False
    )["input_ids"]
    cut = [ids[: max(1, round(share * len(ids)))] for ids in encoded]
    return reward_model.score_ids(cut, max_rows=64).cpu().numpy().astype(np.float64)
