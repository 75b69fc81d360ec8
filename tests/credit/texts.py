"""A text that several tests work with."""

from __future__ import annotations

from textgym.models import Completions


def five_tokens(readouts=None):
    """A prompt of two tokens and a completion of five, token ids 1 to 7, with score 2."""
    return Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0], readouts)
