"""Policies measured on fresh completions: prompts and seeds of their own, equal for all policies.

The scores of a training batch are noisy, and the policy was trained on that very reward model. So
the completions are also judged by a classifier of another family, which no policy was trained on,
and by their variety.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from textgym.agents import Agent, collect_episodes
from textgym.reviews import Review, load_reviews

__all__ = [
    "FreshCompletions",
    "Written",
    "distinct_2",
    "fit_outside_scorer",
    "outside_scorer",
    "windows",
]

NUM_COMPLETIONS = 512
_SEED = 20_000
"""Of the prompts, the lengths and the tokens; agents are seeded with small numbers."""


class Written(NamedTuple):
    """Completions that a policy wrote.

    Attributes:
        prompts: Texts.
        completions: Texts.
        scores: Of the environment, (num_completions,).
        kl: Divergence from the reference policy in nats, (num_completions,).
        lengths: In tokens, (num_completions,).
    """

    prompts: list[str]
    completions: list[str]
    scores: NDArray[np.floating]
    kl: NDArray[np.floating]
    lengths: NDArray[np.integer]

    def texts(self) -> list[str]:
        """Prompts with their completions."""
        return [a + b for a, b in zip(self.prompts, self.completions, strict=True)]


class FreshCompletions:
    """Measures policies on one set of prompts.

    Args:
        envs: Where the completions are written.
        number: How many, a multiple of the number of rows.
        film_reviews: Whether the texts are film reviews, which the outside scorer can judge.
    """

    def __init__(
        self, envs: VectorEnv, number: int = NUM_COMPLETIONS, film_reviews: bool = True
    ) -> None:
        self.envs = envs
        self.number = number
        self.film_reviews = film_reviews

    @torch.no_grad()
    def write(self, agent: Agent) -> Written:
        """Let the agent's policy write."""
        tokens, prompts = (torch.Generator().manual_seed(_SEED + i) for i in range(2))
        rollout = collect_episodes(agent.policy, self.envs, self.number, tokens, prompts)
        kl = []
        for rows in torch.arange(self.number).split(64):
            ids, attention_mask, mask = (tensor[rows] for tensor in rollout.texts)
            ref_logits = agent.ref_policy.completion_logits(ids, attention_mask, mask)
            compared = agent.policy.compare(ids, attention_mask, mask, ref_logits)
            kl.append(compared.kl.sum(dim=1))
        return Written(
            list(rollout.prompts),
            list(rollout.completions),
            rollout.scores.numpy(),
            torch.cat(kl).numpy(),
            rollout.episode_lengths.numpy(),
        )

    def measure(self, written: Written) -> dict[str, float]:
        """Measure what was written.

        Returns:
            ``score``, the mean; ``kl``, the mean divergence from the reference policy, exact in
            each state, in nats per completion; ``outside``, the mean of the outside scorer's
            log-odds for "positive", NaN without it; ``distinct_2``; ``length``, the mean in tokens.
        """
        outside = [float("nan")]
        if self.film_reviews:
            outside = outside_scorer().decision_function(written.texts())
        return {
            "score": float(np.mean(written.scores)),
            "kl": float(np.mean(written.kl)),
            "outside": float(np.mean(outside)),
            "distinct_2": distinct_2(written.completions),
            "length": float(np.mean(written.lengths)),
        }


def distinct_2(texts: Iterable[str]) -> float:
    """Number of different pairs of neighbouring words, over the number of all pairs.

    Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models",
    arXiv 1510.03055, but over all texts together. It falls as texts get longer or more, so compare
    equal numbers of equal length.

    Args:
        texts: With words between spaces.

    Example:
        >>> distinct_2(["a good film", "a good day"])  # a good, good film, a good, good day
        0.75
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        words = text.lower().split()
        pairs.update(pairwise(words))
    return len(pairs) / max(1, pairs.total())


@cache
def outside_scorer() -> Pipeline:
    """The classifier, fitted to all training reviews; it has seen no held-out one."""
    return fit_outside_scorer(load_reviews("train"))


def fit_outside_scorer(reviews: Sequence[Review]) -> Pipeline:
    """A logistic regression on words and pairs of words, fitted to a piece of each review.

    Its log-odds for "positive" are a score: ``decision_function``.
    """
    scorer = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True),
        LogisticRegression(C=4.0, max_iter=1000),
    )
    return scorer.fit(*windows(reviews, seed=0))


def windows(reviews: Sequence[Review], seed: int) -> tuple[list[str], NDArray[np.int64]]:
    """A piece of 8 to 64 words of each review, and its label: texts as short as completions are.

    Args:
        reviews: Labelled texts.
        seed: Of the pieces.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for review in reviews:
        words = review.text.split()
        length = int(rng.integers(8, 65))
        first = int(rng.integers(max(1, len(words) - length + 1)))
        texts.append(" ".join(words[first : first + length]))
    return texts, np.array([review.label for review in reviews])
