"""Windows: labelled pieces of reviews, which the reward model is trained and evaluated on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from textgym.reviews import Review

__all__ = ["PadRight", "Window", "WindowDataset", "batch_by_length", "draw_windows", "encode"]

_SENTENCE_END = re.compile(r"[.!?] ")


class Window(NamedTuple):
    """A labelled piece of a text.

    Attributes:
        input_ids: Token ids, start token first, with or without an end token.
        label: 1 for positive, 0 for negative.
    """

    input_ids: list[int]
    label: int


def draw_windows(
    reviews: Sequence[Review],
    tokenizer: PreTrainedTokenizerBase,
    min_tokens: int,
    max_tokens: int,
    rng: np.random.Generator,
    start_share: float = 0.5,
    end_share: float = 0.0,
) -> list[Window]:
    """Draw one window from every text.

    Lengths are log-uniform between the two bounds, so short windows dominate. A text that ends too
    early gives a shorter window, or none if that would fall below the minimum.

    Args:
        reviews: The labelled texts.
        tokenizer: The embedded tokenizer.
        min_tokens: Shortest window, without start and end tokens.
        max_tokens: Longest window, without start and end tokens.
        rng: Source of all draws.
        start_share: Probability that a window begins at the start of its text; otherwise it begins
            at a random sentence.
        end_share: Probability that an end token is appended.

    Returns:
        The windows, in the order of the texts.
    """
    texts = []
    for review in reviews:
        sentences = [match.end() for match in _SENTENCE_END.finditer(review.text)]
        from_start = not sentences or rng.random() < start_share
        texts.append(review.text[0 if from_start else rng.choice(sentences) :])
    bounds = math.log(min_tokens), math.log(max_tokens + 1)
    lengths = np.exp(rng.uniform(*bounds, size=len(texts))).astype(int).clip(min_tokens, max_tokens)
    ended = rng.random(len(texts)) < end_share
    windows = []
    for ids, length, end, review in zip(
        encode(tokenizer, texts, max_tokens), lengths, ended, reviews, strict=True
    ):
        ids = ids[: length + 1]
        if len(ids) > min_tokens:
            windows.append(Window([*ids, tokenizer.eos_token_id] if end else ids, review.label))
    return windows


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int
) -> list[list[int]]:
    """Token ids of texts: the start token, then at most ``max_tokens`` tokens of each."""
    if not texts:
        return []
    return tokenizer(texts, truncation=True, max_length=max_tokens + 1)["input_ids"]


def batch_by_length(
    windows: Sequence[Window], batch_size: int, rng: np.random.Generator
) -> list[Window]:
    """Order windows so that each batch holds windows of similar length.

    Args:
        windows: The windows.
        batch_size: Windows per batch; the last, incomplete batch is dropped.
        rng: Shuffles windows of equal length, and the order of the batches.

    Returns:
        The windows of the first batch, then those of the second, and so on.
    """
    shuffled = rng.permutation(len(windows))
    ordered = sorted(shuffled, key=lambda i: len(windows[i].input_ids))
    batches = [
        ordered[first : first + batch_size]
        for first in range(0, len(ordered) - batch_size + 1, batch_size)
    ]
    return [windows[i] for batch in rng.permutation(len(batches)) for i in batches[batch]]


class WindowDataset(Dataset):
    """Windows as a dataset of PyTorch."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.windows[index]


class PadRight:
    """Collates windows, padded on the right: a causal model then needs no mask.

    Args:
        pad_token_id: The padding token.
        multiple: Batches are padded to a multiple of this width.
    """

    def __init__(self, pad_token_id: int, multiple: int) -> None:
        self.pad_token_id = pad_token_id
        self.multiple = multiple

    def __call__(self, windows: list[Window]) -> dict[str, Tensor]:
        """Pad windows to one width."""
        lengths = [len(window.input_ids) for window in windows]
        width = -(-max(lengths) // self.multiple) * self.multiple
        input_ids = torch.full((len(windows), width), self.pad_token_id)
        for row, window in zip(input_ids, windows, strict=True):
            row[: len(window.input_ids)] = torch.tensor(window.input_ids)
        return {
            "input_ids": input_ids,  # (batch, width)
            "lengths": torch.tensor(lengths),  # (batch,)
            "labels": torch.tensor([window.label for window in windows]),  # (batch,)
        }
