"""The best texts of the planted task, found by dynamic programming over the program's states."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from textgym.errors import InvalidArgumentError
from textgym.planted.program import EOS_ID, VOCABULARY, State, checked_ids, score, step

__all__ = ["optimal_completion", "optimal_score", "prefix_scores"]


def optimal_score(prompt_ids: Sequence[int], num_new_tokens: int) -> float:
    """Compute the highest score that any continuation of a prompt can reach.

    Args:
        prompt_ids: Token ids of the prompt.
        num_new_tokens: Number of new tokens, 0 or more.

    Returns:
        The score of the whole text, prompt included.

    Raises:
        InvalidArgumentError: If an id is not in the vocabulary, or ``num_new_tokens`` is negative.
    """
    state = _state_after(prompt_ids)
    return score(prompt_ids) + float(_gains_to_go(_checked_budget(num_new_tokens))[state])


def optimal_completion(prompt_ids: Sequence[int], num_new_tokens: int) -> list[int]:
    """Find a best continuation of a prompt, without special tokens.

    Args:
        prompt_ids: Token ids of the prompt.
        num_new_tokens: Number of new tokens, 0 or more.

    Returns:
        ``num_new_tokens`` token ids. Among equally good tokens, the lowest id wins.

    Raises:
        InvalidArgumentError: If an id is not in the vocabulary, or ``num_new_tokens`` is negative.
    """
    next_state, change = _table()
    state, completion = _state_after(prompt_ids), []
    for left in reversed(range(_checked_budget(num_new_tokens))):
        gains = change[state] + _gains_to_go(left)[next_state[state]]  # (vocab_size,)
        token = EOS_ID + 1 + int(gains[EOS_ID + 1 :].argmax())  # skips the special tokens
        completion.append(token)
        state = next_state[state, token]
    return completion


def prefix_scores(ids: np.ndarray) -> np.ndarray:
    """Compute the scores of all prefixes of many texts of the same length.

    Args:
        ids: Token ids, shape (num_texts, num_tokens).

    Returns:
        The score of the text up to each token, float32, same shape.
    """
    next_state, change = _table()
    state = np.zeros(len(ids), dtype=np.int64)
    changes = np.zeros(ids.shape, dtype=np.float32)
    for position in range(ids.shape[1]):
        changes[:, position] = change[state, ids[:, position]]
        state = next_state[state, ids[:, position]]
    return changes.cumsum(axis=1)


def _state_after(ids: Sequence[int]) -> int:
    """Number of the state after a text."""
    next_state, _ = _table()
    state = 0
    for token in checked_ids("prompt_ids", ids):
        state = int(next_state[state, token])
    return state


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """The step function as two tables over all reachable states; state 0 is the empty text.

    Returns:
        The number of the next state, int64, and the change of the score, float64, both of shape
        (num_states, vocab_size).
    """
    states = [State()]
    number = {states[0]: 0}
    rows = []
    for state in states:  # the list grows during the loop: breadth-first search
        row = [step(state, token) for token in range(len(VOCABULARY))]
        for after, _ in row:
            if after not in number:
                number[after] = len(states)
                states.append(after)
        rows.append(row)
    next_state = np.array([[number[after] for after, _ in row] for row in rows])
    change = np.array([[float(gain) for _, gain in row] for row in rows])
    return next_state, change


@functools.cache
def _gains_to_go(num_tokens: int) -> np.ndarray:
    """The most that ``num_tokens`` more tokens can add to the score, shape (num_states,)."""
    next_state, change = _table()
    gains = np.zeros(len(change))
    for _ in range(num_tokens):
        gains = (change + gains[next_state]).max(axis=1)
    return gains


def _checked_budget(num_new_tokens: int) -> int:
    if num_new_tokens < 0:
        raise InvalidArgumentError("num_new_tokens", num_new_tokens, "must be 0 or more")
    return int(num_new_tokens)
