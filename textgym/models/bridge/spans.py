"""Which characters of a text each token stands for, and how tokens of two tokenizers overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from textgym.models.completions import Completions

__all__ = ["TextRow", "TokenText", "overlap", "prefix_texts", "text_rows", "texts_of_tokens"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenText:
    """The text of some tokens.

    Attributes:
        text: The text, without special tokens.
        bounds: Token t stands for the characters from ``bounds[t]`` to ``bounds[t + 1]``; float64,
            shape (num_tokens + 1,). Together the tokens cover the text. Tokens that make up a
            character together, such as the bytes of an emoji, have equal parts of it. A special
            token has no character.
    """

    text: str
    bounds: Floats


def texts_of_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
) -> list[TokenText]:
    """The texts of some token lists.

    A token's characters are those that decoding it adds to what came before, because what a token
    stands for can depend on that: a leading space, or the bytes of one character.

    Args:
        tokenizer: The tokenizer of the tokens.
        rows: Token ids of each text.
    """
    prefixes = [tuple(ids[:end]) for ids in rows for end in range(1, len(ids) + 1)]
    if not prefixes:  # The library decodes an empty list to one text.
        return [TokenText("", np.zeros(1)) for _ in rows]
    distinct = list(dict.fromkeys(prefixes))  # Prompts, and altered texts, begin alike.
    texts: Sequence[str] = tokenizer.batch_decode(
        [list(ids) for ids in distinct],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    by_prefix = dict(zip(distinct, texts, strict=True))
    decoded = [by_prefix[ids] for ids in prefixes]
    special = set(tokenizer.all_special_ids)
    found, first = [], 0
    for ids in rows:
        found.append(_bounds(ids, decoded[first : first + len(ids)], special))
        first += len(ids)
    return found


def _bounds(ids: Sequence[int], prefixes: Sequence[str], special: set[int]) -> TokenText:
    text = prefixes[-1] if prefixes else ""
    bounds, waiting, end = [0.0], 0, 0
    for token, prefix in zip(ids, prefixes, strict=True):
        # An unfinished character is decoded to a mark that later tokens replace.
        new_end = max(end, _common_length(prefix, text))
        if token in special:
            bounds += [float(end)] * (waiting + 1)
            waiting = 0
            continue
        waiting += 1
        if new_end > end:
            bounds += np.linspace(end, new_end, waiting + 1)[1:].tolist()
            end, waiting = new_end, 0
    bounds += [float(end)] * waiting
    return TokenText(text, np.array(bounds))


def _common_length(a: str, b: str) -> int:
    """Number of characters that both texts begin with."""
    if b.startswith(a):
        return len(a)
    return next(i for i, (x, y) in enumerate(zip(a + "\0", b + "\1", strict=False)) if x != y)


@dataclass(frozen=True)
class TextRow:
    """A row of a batch of completions as text.

    Attributes:
        columns: Where its tokens stand in the batch, int64, shape (num_tokens,).
        tokens: The text of all of them, prompt first.
        num_prompt_tokens: How many belong to the prompt.
        own_prompt: The prompt as rewards that read text see it, if that is not its decoded tokens:
            of a chat, what the user says. None otherwise.
    """

    columns: NDArray[np.int64]
    tokens: TokenText
    num_prompt_tokens: int
    own_prompt: str | None = None

    @property
    def prompt_end(self) -> int:
        """Number of characters of the prompt's tokens."""
        return round(self.tokens.bounds[self.num_prompt_tokens])

    @property
    def prompt(self) -> str:
        """Text of the prompt."""
        return self.tokens.text[: self.prompt_end] if self.own_prompt is None else self.own_prompt

    @property
    def completion(self) -> str:
        """Text of the completion."""
        return self.tokens.text[self.prompt_end :]

    def completion_until(self, num_tokens: int) -> str:
        """Text of the completion after some tokens of the row, whole characters only."""
        return self.tokens.text[self.prompt_end : int(self.tokens.bounds[num_tokens] + 1e-6)]


def text_rows(
    tokenizer: PreTrainedTokenizerBase,
    completions: Completions,
    every_token: bool = True,
    prompt_texts: Mapping[tuple[int, ...], str] = MappingProxyType({}),
) -> list[TextRow]:
    """The rows of a batch as text. Masked tokens are left out, prompts come first.

    Args:
        tokenizer: The tokenizer of the tokens.
        completions: The batch.
        every_token: Whether the bounds of all tokens are needed. Otherwise only those around the
            completion are known, and the others are NaN: two texts are decoded instead of one per
            token.
        prompt_texts: By the tokens of a prompt, what rewards that read text see of it.
    """
    mask = completions.attention_mask.cpu().numpy()
    generated = completions.completion_mask.cpu().numpy()
    input_ids = completions.input_ids.cpu().numpy()
    columns = [np.flatnonzero(row) for row in mask]
    ids = [input_ids[row, own].tolist() for row, own in enumerate(columns)]
    lengths = [int((~generated[row, own]).sum()) for row, own in enumerate(columns)]
    if every_token:
        texts = texts_of_tokens(tokenizer, ids)
    else:
        texts = _whole_texts(tokenizer, ids, lengths)
    own = [prompt_texts.get(tuple(row[:length])) for row, length in zip(ids, lengths, strict=True)]
    return [TextRow(*row) for row in zip(columns, texts, lengths, own, strict=True)]


def _whole_texts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], prompt_lengths: Sequence[int]
) -> list[TokenText]:
    prompts = [ids[:length] for ids, length in zip(rows, prompt_lengths, strict=True)]
    decoded: Sequence[str] = tokenizer.batch_decode(
        [*prompts, *rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    found = []
    for number, (ids, length) in enumerate(zip(rows, prompt_lengths, strict=True)):
        text = decoded[len(rows) + number]
        bounds = np.full(len(ids) + 1, np.nan)
        bounds[length], bounds[len(ids)] = _common_length(decoded[number], text), len(text)
        found.append(TokenText(text, bounds))
    return found


def prefix_texts(
    rows: Sequence[TextRow],
) -> tuple[list[tuple[int, int]], list[tuple[str, str]]]:
    """The texts up to each token, from the end of the prompt on.

    Args:
        rows: With the bounds of every token.

    Returns:
        The place of each such token, its row and column in the batch; and for each the prompt and
        the completion so far.
    """
    places, texts = [], []
    for number, row in enumerate(rows):
        for end in range(max(1, row.num_prompt_tokens), len(row.columns) + 1):
            places.append((number, int(row.columns[end - 1])))
            texts.append((row.prompt, row.completion_until(end)))
    return places, texts


def overlap(starts: Floats, ends: Floats, offsets: NDArray[np.int64]) -> Floats:
    """Which part of each of some other tokens lies in each token.

    Args:
        starts: First character of each token, shape (num_tokens,).
        ends: Character behind each token, same shape.
        offsets: First character of each other token and the one behind it, (num_others, 2). Tokens
            without characters have equal numbers.

    Returns:
        Shape (num_tokens, num_others). A column sums to 1 if the tokens cover the other token, and
        to 0 if it has no characters.

    >>> overlap(np.array([0.0, 2.0]), np.array([2.0, 4.0]), np.array([[0, 3], [3, 4], [4, 4]]))
    array([[0.66666667, 0.        , 0.        ],
           [0.33333333, 1.        , 0.        ]])
    """
    common = np.minimum(ends[:, None], offsets[:, 1]) - np.maximum(starts[:, None], offsets[:, 0])
    width = offsets[:, 1] - offsets[:, 0]
    return common.clip(min=0.0) / np.maximum(width, 1)
