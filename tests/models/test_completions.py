"""Batches built from lists and from arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textgym.errors import InvalidArgumentError
from textgym.models import Completions


def test_lists_are_padded_on_the_right():
    batch = Completions.from_lists([[5, 6], [7]], [[8, 9, 2], []], pad_token_id=3)
    assert batch.input_ids.tolist() == [[5, 6, 8, 9, 2], [7, 3, 3, 3, 3]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert batch.prompt_mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == batch.completion_mask.dtype == torch.bool


def test_a_batch_may_be_empty():
    batch = Completions.from_lists([], [])
    assert len(batch) == 0
    assert batch.completion_mask.shape == (0, 0)


def test_lists_of_unequal_numbers_are_refused():
    with pytest.raises(InvalidArgumentError, match="one completion per prompt"):
        Completions.from_lists([[5]], [[6], [7]])


def test_arrays_give_what_lists_give():
    ids = np.array([[5, 6, 8, 9, 0, 0, 0], [7, 2, 0, 0, 0, 0, 0]])
    from_arrays = Completions.from_arrays(ids, np.array([2, 1]), np.array([4, 2]))
    from_lists = Completions.from_lists([[5, 6], [7]], [[8, 9], [2]])
    for name in ("input_ids", "attention_mask", "completion_mask"):
        assert torch.equal(getattr(from_arrays, name), getattr(from_lists, name))


def test_a_batch_does_not_follow_later_changes_of_the_array():
    ids = np.array([[5, 6]])
    batch = Completions.from_arrays(ids, np.array([1]), np.array([2]))
    ids[0, 1] = 9
    assert batch.input_ids.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("prompt_lengths", "lengths"),
    [([2, 1], [1, 2]), ([1, 1], [2, 4]), ([-1, 1], [2, 2]), ([1], [2]), ([1, 1], [2, 2, 2])],
)
def test_lengths_that_do_not_fit_are_refused(prompt_lengths, lengths):
    with pytest.raises(InvalidArgumentError, match=r"length|shape"):
        Completions.from_arrays(
            np.zeros((2, 3), dtype=np.int64), np.array(prompt_lengths), np.array(lengths)
        )
