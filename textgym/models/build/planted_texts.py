"""Random texts that the models of the planted task are trained on.

All functions return int64 arrays (num_texts, 1 + num_words): the start token, then the words. The
models are causal and every position is trained, so a text of 24 words also trains every shorter
length.
"""

from __future__ import annotations

import numpy as np

from textgym.planted import (
    EOS_ID,
    PROMPTS,
    START_ID,
    TOKEN_IDS,
    VALUES,
    VOCABULARY,
    encode,
)

__all__ = ["draw_clauses", "draw_phrases", "draw_scored_texts", "draw_words"]

_NEUTRAL = [TOKEN_IDS[word] for word in ("the", "film", "plot", "was", "and", "it", "so")]
_MODIFIERS = [[], [TOKEN_IDS["not"]], [TOKEN_IDS["very"]], encode("not very")[1:]]


def draw_words(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Words drawn one by one: uniformly in half of the texts, rich in sentiment in the others.

    Args:
        rng: Source of the draws.
        num_texts: Number of texts.
        num_words: Number of words after the start token. Padding and start tokens may be among
            them, since a policy may choose these too.

    Returns:
        Token ids, int64 (num_texts, 1 + num_words).
    """
    uniform = np.ones(len(VOCABULARY))
    rich = np.ones(len(VOCABULARY))
    rich[[*VALUES, TOKEN_IDS["very"], TOKEN_IDS["not"], TOKEN_IDS["however"]]] = 4.0
    uniform[EOS_ID] = rich[EOS_ID] = 0.0
    half = num_texts // 2
    return _with_start(
        np.concatenate(
            [
                rng.choice(len(VOCABULARY), (rows, num_words), p=weights / weights.sum())
                for rows, weights in ((half, uniform), (num_texts - half, rich))
            ]
        )
    )


def draw_phrases(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Sentiment phrases in a row, as a good policy would write; takes what ``draw_words`` takes.

    Half of the texts begin with a prompt. Sometimes a neutral word or a *however* stands between
    two phrases, or a phrase has a run of modifiers in any order. In a third of the texts all
    phrases are praise, as in the best texts.
    """
    prompts = [encode(prompt)[1:] for prompt in PROMPTS]
    words_of_value, modifiers = list(VALUES), encode("very not")[1:]

    def draw() -> list[int]:
        words = list(prompts[rng.integers(len(prompts))]) if rng.random() < 0.5 else []
        praise = min(1.0, 1.5 * rng.random())  # share of the phrases that are worth more than 0
        while len(words) < num_words:
            kind = rng.random()
            word = words_of_value[rng.integers(len(VALUES))]
            if kind < 0.15:
                words.append(TOKEN_IDS["however"] if kind < 0.05 else int(rng.choice(_NEUTRAL)))
            elif kind < 0.3:
                words += [*rng.choice(modifiers, rng.integers(2, 6)).tolist(), word]
            else:
                negated = (VALUES[word] < 0) == (rng.random() < praise)
                words += [*_MODIFIERS[negated + 2 * (rng.random() < 0.7)], word]
        return words[:num_words]

    return _with_start(np.array([draw() for _ in range(num_texts)]))


def draw_clauses(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Plain clauses for the language model to imitate; takes what ``draw_words`` takes.

    For example "the film was good and the plot was very bad". One word in seven is replaced by a
    random word, so that the model gives some probability to every word. End tokens follow the last
    clause.
    """
    subjects = [encode(text)[1:] for text in ("it was", "the film was", "the plot was")]
    links = [[TOKEN_IDS[word]] for word in ("and", "so", "however")]

    def draw() -> list[int]:
        words: list[int] = []
        for _ in range(rng.integers(2, 6)):
            modifiers = _MODIFIERS[rng.choice(4, p=(0.5, 0.2, 0.2, 0.1))]
            words += subjects[rng.integers(len(subjects))] + modifiers
            words.append(list(VALUES)[rng.integers(len(VALUES))])
            words += links[rng.choice(len(links), p=(0.6, 0.2, 0.2))]
        return words[:num_words] + [EOS_ID] * (num_words - len(words))

    words = np.array([draw() for _ in range(num_texts)])
    noise = rng.integers(EOS_ID + 1, len(VOCABULARY), words.shape)
    return _with_start(
        np.where((rng.random(words.shape) < 1 / 7) & (words != EOS_ID), noise, words)
    )


def _with_start(words: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full((len(words), 1), START_ID), words], axis=1).astype(np.int64)


def _with_ends(rng: np.random.Generator, texts: np.ndarray, share: float) -> np.ndarray:
    """End a share of the texts at a random word; end tokens fill the rest."""
    end = rng.integers(1, texts.shape[1], (len(texts), 1))
    ended = rng.random((len(texts), 1)) < share
    return np.where(ended & (np.arange(texts.shape[1]) >= end), EOS_ID, texts)


def draw_scored_texts(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Training texts of the reward model: the three kinds of texts, in random order."""
    third = num_texts // 3
    texts = np.concatenate(
        [
            draw_words(rng, num_texts - 2 * third, num_words),
            draw_phrases(rng, third, num_words),
            draw_clauses(rng, third, num_words),
        ]
    )
    return rng.permutation(_with_ends(rng, texts, share=0.1))
