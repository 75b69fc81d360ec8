"""The planted task: a vocabulary of 17 tokens and a small program that scores texts.

The program reads a text word by word and adds up its sentiment phrases:

- *wonderful*, *good*, *bad* and *awful* are worth +2, +1, -1 and -2. Each word counts only the
  first time. When it is repeated, the word and its modifiers are worth 0.
- *very* doubles the sentiment word after it, and *not* flips its sign. Only other modifiers may
  stand in between: any other word ends the effect. The order of the modifiers does not matter, and
  a repeated modifier counts once, so *very not good* is worth -2, the same as *not very good*.
- *however* takes back the first phrase that counted, however far back. Only one *however* per text
  does this. A *however* before any phrase has nothing to take back and does nothing.
- All other tokens are neutral. Nothing counts after the end token.

The best texts use all four words: *very wonderful very good not very bad not very awful* is worth
4 + 2 + 2 + 4 = 12, the highest score of all texts.

>>> score(encode("the film was not very bad and very wonderful"))
6.0
>>> contributions(encode("it was not very bad however")).tolist()
[0.0, 0.0, 0.0, 4.0, -1.0, -1.0, -2.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from textgym.errors import InvalidArgumentError

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "PROMPTS",
    "START_ID",
    "TOKEN_IDS",
    "VALUES",
    "VOCABULARY",
    "State",
    "checked_ids",
    "contributions",
    "encode",
    "score",
    "step",
]

# fmt: off
VOCABULARY = (
    "<pad>", "<s>", "</s>",
    "wonderful", "good", "bad", "awful",
    "very", "not", "however",
    "the", "film", "plot", "was", "and", "it", "so",
)
"""The tokens, in the order of their ids."""
# fmt: on

PROMPTS = ("it was", "the film was", "the plot was", "the film and the plot was", "and so it was")
"""Neutral beginnings; each scores 0."""

TOKEN_IDS = {word: token for token, word in enumerate(VOCABULARY)}
"""Id of each token."""

PAD_ID, START_ID, EOS_ID = range(3)
_VERY, _NOT, _HOWEVER = (TOKEN_IDS[word] for word in ("very", "not", "however"))

VALUES = {
    TOKEN_IDS[word]: value
    for word, value in (("wonderful", 2), ("good", 1), ("bad", -1), ("awful", -2))
}
"""Value of each sentiment word without modifiers, by id."""


class State(NamedTuple):
    """What the program remembers of a text; the default is the empty text.

    Attributes:
        seen: Ids of the sentiment words so far.
        negated: Whether a *not* applies to the next word.
        intensified: Whether a *very* applies to the next word.
        first: Value of the first phrase that counted. It is 0 before the first phrase and after a
            *however* has taken it back.
        ended: Whether the text has ended.
    """

    seen: frozenset[int] = frozenset()
    negated: bool = False
    intensified: bool = False
    first: int = 0
    ended: bool = False


def step(state: State, token: int) -> tuple[State, int]:
    """Read one token.

    Args:
        state: The state before the token.
        token: Id of the token.

    Returns:
        The state after the token, and the change of the score.
    """
    if state.ended:
        return state, 0
    if token == _VERY:
        return state._replace(intensified=True), 0
    if token == _NOT:
        return state._replace(negated=True), 0
    after = state._replace(negated=False, intensified=False)
    if token == EOS_ID:
        return after._replace(ended=True), 0
    if token == _HOWEVER and state.first:
        return after._replace(first=0), -state.first
    if token in VALUES and token not in state.seen:
        value = VALUES[token] * (2 if state.intensified else 1) * (-1 if state.negated else 1)
        first = state.first if state.seen else value
        return after._replace(seen=state.seen | {token}, first=first), value
    return after, 0


def encode(text: str) -> list[int]:
    """Encode words separated by spaces; the start token comes first.

    Args:
        text: Words of the vocabulary.

    Returns:
        Token ids, one more than there are words.

    Raises:
        InvalidArgumentError: If a word is not in the vocabulary.
    """
    unknown = [word for word in text.split() if word not in TOKEN_IDS]
    if unknown:
        raise InvalidArgumentError(
            "text", text, f"{unknown[0]!r} is not one of the words {', '.join(VOCABULARY)}"
        )
    return [START_ID, *(TOKEN_IDS[word] for word in text.split())]


def score(ids: Sequence[int]) -> float:
    """Score a text.

    Args:
        ids: Token ids of prompt and completion together.

    Returns:
        A whole number from -12 to 12.

    Raises:
        InvalidArgumentError: If an id is not in the vocabulary.
    """
    state, total = State(), 0
    for token in checked_ids("ids", ids):
        state, change = step(state, token)
        total += change
    return float(total)


def contributions(ids: Sequence[int]) -> np.ndarray:
    """Compute how much each token of a text contributes to its score.

    A sentiment word that counts earns its plain value v. *very* earns what it adds, v. *not* earns
    the change it makes: -2v without a *very*, -4v with one. If a modifier is repeated, the first
    one earns. *however* earns minus the value it takes back. All other tokens earn 0. So the tokens
    of "not very bad", which is worth 2, earn 4, -1 and -1.

    Args:
        ids: Token ids of prompt and completion together.

    Returns:
        float32, shape (num_tokens,). The sum is exactly the score.

    Raises:
        InvalidArgumentError: If an id is not in the vocabulary.
    """
    earned = np.zeros(len(ids), dtype=np.float32)
    state, very_at, not_at = State(), 0, 0
    for position, token in enumerate(checked_ids("ids", ids)):
        after, change = step(state, token)
        if after.intensified and not state.intensified:
            very_at = position
        if after.negated and not state.negated:
            not_at = position
        if len(after.seen) > len(state.seen):
            plain = VALUES[token]
            doubled = 2 * plain if state.intensified else plain
            earned[position] = plain
            earned[very_at] += doubled - plain
            earned[not_at] += change - doubled
        else:
            earned[position] += change
        state = after
    return earned


def checked_ids(name: str, ids: Sequence[int]) -> list[int]:
    """Return token ids as plain integers.

    Args:
        name: The argument's name, for the error.
        ids: The token ids.

    Raises:
        InvalidArgumentError: If an id is not in the vocabulary.
    """
    checked = [int(token) for token in ids]
    for token in checked:
        if not 0 <= token < len(VOCABULARY):
            raise InvalidArgumentError(
                name, token, f"token ids run from 0 to {len(VOCABULARY) - 1}"
            )
    return checked
