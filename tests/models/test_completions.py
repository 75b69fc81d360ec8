"""Batches built from lists and from arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from textgym.errors import InvalidArgumentError
from textgym.models import Completions, PrefixScores


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


def test_scores_and_readouts_can_be_attached_by_hand():
    batch = Completions.from_lists([[5, 6], [7]], [[8], [9]])
    scores = [[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]]
    scored = batch.with_score([2, 4], {PrefixScores(): scores})
    assert scored.score.tolist() == [2.0, 4.0]
    assert scored.score.dtype == scored[PrefixScores()].dtype == torch.float32
    assert scored[PrefixScores()].tolist() == scores
    assert scored.select(slice(1, 2))[PrefixScores()].tolist() == scores[1:]


@pytest.mark.parametrize("score", [[1.0], [[1.0, 2.0]], [[1.0], [2.0]], 1.0])
def test_scores_of_another_shape_are_refused(score):
    with pytest.raises(InvalidArgumentError, match=r"score=.*shape \(2,\)"):
        Completions.from_lists([[5], [6]], [[8], [9]]).with_score(score)


def test_readouts_of_another_number_of_rows_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"PrefixScores\(\) must have shape \(1, ...\)"):
        Completions.from_lists([[5]], [[8]]).with_score([1.0], {PrefixScores(): [[0, 1], [0, 1]]})


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
