"""Credit by deletion against texts written without the deleted tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.credit.additive import AdditiveRewardModel
from textgym.credit.perturbation import OcclusionCredit, score_subsets
from textgym.errors import InvalidArgumentError
from textgym.models import Completions

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def score_of(reward_model, prompt, completion):
    return reward_model.read(Completions.from_lists([prompt], [completion])).score[0]


def test_a_subset_is_scored_as_the_text_without_the_other_tokens(reward_model):
    scored = reward_model.read(Completions.from_lists([[1, 40]], [[50, 60, 70]]))
    keep = torch.tensor([[[0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]])
    expected = [
        score_of(reward_model, [1, 40], completion)
        for completion in ([50, 70], [], [50, 60, 70], [60, 70])
    ]
    values = score_subsets(scored, keep.bool())[0]
    torch.testing.assert_close(values, torch.stack(expected), **CLOSE)
    assert values.unique().numel() == 4


def test_prompt_and_padding_stay_whatever_keep_says_of_them(reward_model, ragged):
    scored = reward_model.read(ragged)
    nothing = torch.zeros(3, 1, ragged.input_ids.shape[1], dtype=torch.bool)
    kept = nothing | ~ragged.completion_mask[:, None]
    torch.testing.assert_close(score_subsets(scored, nothing), score_subsets(scored, kept))


def test_each_distinct_subset_of_a_row_is_scored_once(reward_model, ragged, passes):
    scored = reward_model.read(ragged)
    passes.forward = 0
    keep = torch.ones(3, 4, ragged.input_ids.shape[1], dtype=torch.bool)
    keep[0, 1:3, 2] = False
    values = score_subsets(scored, keep)
    assert passes.forward == 4  # Two of the first row, one of each other row.
    torch.testing.assert_close(values[:, 0], scored.score, **CLOSE)
    assert values[0, 1] == values[0, 2] != values[0, 0]


def test_the_rows_of_a_pass_are_bounded_and_change_nothing(reward_model, ragged, passes):
    scored = reward_model.read(ragged)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(3, 9, ragged.input_ids.shape[1], generator=generator) < 0.5
    whole = score_subsets(scored, keep)
    passes.largest = 0
    torch.testing.assert_close(score_subsets(scored, keep, max_rows=2), whole, **CLOSE)
    assert passes.largest == 2


def test_occlusion_finds_what_each_token_of_a_sum_is_worth():
    worth = torch.tensor([0.0, 3.0, 0.5, -1.0, 2.0, 0.25])
    batch = Completions.from_lists([[1, 2], [3]], [[2, 3, 4], [5]])
    attributions = OcclusionCredit().attributions(AdditiveRewardModel(worth).read(batch))
    expected = worth[batch.input_ids] * batch.completion_mask
    torch.testing.assert_close(attributions, expected)


def test_occlusion_is_the_loss_by_leaving_a_token_out(reward_model):
    prompt, completion = [1, 40], [50, 60, 50, 2]
    scored = reward_model.read(Completions.from_lists([prompt], [completion]))
    losses = [
        scored.score[0] - score_of(reward_model, prompt, completion[:t] + completion[t + 1 :])
        for t in range(len(completion))
    ]
    attributions = OcclusionCredit().attributions(scored)[0, 2:]
    torch.testing.assert_close(attributions, torch.stack(losses), **CLOSE)
    assert attributions.abs().min() > 1e-3


def test_occlusion_compares_scores_of_one_model(reward_model, ragged):
    """Another reward function may have replaced the score."""
    scored = reward_model.read(ragged)
    replaced = dataclasses.replace(scored, score=scored.score + 100)
    occlusion = OcclusionCredit()
    torch.testing.assert_close(occlusion.attributions(replaced), occlusion.attributions(scored))
    torch.testing.assert_close(occlusion(replaced).sum(1), replaced.score)


def test_declared_passes_are_the_texts_that_are_scored(reward_model, ragged, passes):
    scored = reward_model.read(ragged)
    passes.forward = 0
    occlusion = OcclusionCredit()
    occlusion(scored)
    lengths = ragged.completion_mask.sum(1).tolist()
    assert passes.forward == sum(occlusion.forward_passes(length) for length in lengths) == 12
    assert passes.backward == occlusion.backward_passes(5) == 0


def test_padding_batch_size_and_order_change_nothing(reward_model, ragged, ragged_left):
    occlusion = OcclusionCredit(gamma=0.9)
    credit = occlusion(reward_model.read(ragged))
    torch.testing.assert_close(occlusion(reward_model.read(ragged_left))[:, 2:], credit, **CLOSE)
    for row in (2, 0, 1):
        alone = occlusion(reward_model.read(ragged.select(slice(row, row + 1))))
        torch.testing.assert_close(alone[0], credit[row], **CLOSE)


def test_a_batch_of_unknown_origin_is_refused(reward_model, ragged):
    scored = dataclasses.replace(reward_model.read(ragged), reward_model=None)
    with pytest.raises(InvalidArgumentError, match="reward_model"):
        OcclusionCredit()(scored)


def test_a_text_without_any_token_is_refused(reward_model):
    scored = reward_model.read(Completions.from_lists([[]], [[50]]))
    with pytest.raises(InvalidArgumentError, match="prompt at least one token"):
        OcclusionCredit()(scored)


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 8), (3, 1, 7)])
def test_subsets_of_another_shape_are_refused(reward_model, ragged, shape):
    with pytest.raises(InvalidArgumentError, match="shape must be"):
        score_subsets(reward_model.read(ragged), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("arguments", [{"max_rows": 0}, {"max_rows": 2.5}, {"beta": 2.0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        OcclusionCredit(**arguments)
