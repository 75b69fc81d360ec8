"""Fixtures for the tests of credit assigners: ragged texts, and a counter of passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.nn.functional import pad

from textgym.models import Completions

PROMPTS = [[1, 40], [1], [1, 41, 42]]
COMPLETIONS = [[50, 60, 2], [70], [80, 33, 80, 90, 2]]


@pytest.fixture
def ragged():
    """Prompts of 2, 1 and 3 tokens with completions of 3, 1 and 5."""
    return Completions.from_lists(PROMPTS, COMPLETIONS)


@pytest.fixture
def ragged_left(ragged):
    """The same texts, with two more columns of padding on the left."""
    return Completions(
        pad(ragged.input_ids, (2, 0), value=9),
        pad(ragged.attention_mask, (2, 0)),
        pad(ragged.completion_mask, (2, 0)),
    )


@pytest.fixture
def passes(reward_model):
    """Counts the texts that pass forward and backward through the reward model.

    ``largest`` is the largest number of texts in one forward pass.
    """
    counts = SimpleNamespace(forward=0, backward=0, largest=0)

    def count_backward(gradient):
        counts.backward += len(gradient)

    def count_forward(module, args, output):
        hidden = output.last_hidden_state
        counts.forward += len(hidden)
        counts.largest = max(counts.largest, len(hidden))
        if hidden.requires_grad:
            hidden.register_hook(count_backward)

    handle = reward_model.model.base_model.register_forward_hook(count_forward)
    yield counts
    handle.remove()
