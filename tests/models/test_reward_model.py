"""Scores: statistics, labels, batches and bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import Qwen3ForSequenceClassification, Qwen3Model

from tests.conftest import tiny_config
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionMap, AttentionRow, Completions, PrefixScores, RewardModel

BATCH = Completions.from_lists([[1, 40], [1]], [[50, 60, 2], [70]])


def test_shipped_statistics_centre_and_scale_every_score(classifier, tokenizer):
    model = copy.deepcopy(classifier)
    model.config.score_mean, model.config.score_std = 0.75, 2.5
    raw = RewardModel(model, tokenizer, normalize_score=False).read(BATCH, {PrefixScores()})
    scored = RewardModel(model, tokenizer).read(BATCH, {PrefixScores()})
    torch.testing.assert_close(scored.score, (raw.score - 0.75) / 2.5)
    real = BATCH.attention_mask
    torch.testing.assert_close(
        scored[PrefixScores()][real], (raw[PrefixScores()][real] - 0.75) / 2.5
    )


def test_the_positive_label_is_found_by_its_name(classifier, tokenizer):
    model = copy.deepcopy(classifier)
    plain = RewardModel(model, tokenizer).read(BATCH).score
    model.config.id2label = {0: "POSITIVE", 1: "NEGATIVE"}
    torch.testing.assert_close(RewardModel(model, tokenizer).read(BATCH).score, -plain)


def test_one_label_is_the_score_itself(tokenizer):
    model = Qwen3ForSequenceClassification(tiny_config(tokenizer, num_labels=1)).eval()
    with torch.no_grad():
        expected = model(
            input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask.long()
        ).logits[:, 0]
    torch.testing.assert_close(RewardModel(model, tokenizer).read(BATCH).score, expected)


def test_batch_order_and_size_change_nothing(reward_model):
    whole = reward_model.read(BATCH, {AttentionRow()})
    swapped = reward_model.read(BATCH.select(torch.tensor([1, 0])), {AttentionRow()})
    alone = reward_model.read(BATCH.select(slice(1, 2)), {AttentionRow()})
    torch.testing.assert_close(swapped.score, whole.score.flip(0))
    torch.testing.assert_close(swapped[AttentionRow()], whole[AttentionRow()].flip(0))
    torch.testing.assert_close(alone.score, whole.score[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_readout_leaves_the_score_as_it_is(classifier, tokenizer, dtype):
    model = RewardModel(copy.deepcopy(classifier).to(dtype), tokenizer)
    plain = model.read(BATCH).score
    for readouts in ({AttentionRow()}, {PrefixScores()}, {AttentionMap(0), PrefixScores()}):
        assert torch.equal(model.read(BATCH, readouts).score, plain)


@pytest.mark.parametrize("labels", [3, 5])
def test_other_numbers_of_labels_are_refused(tokenizer, labels):
    model = Qwen3ForSequenceClassification(tiny_config(tokenizer, num_labels=labels))
    with pytest.raises(InvalidArgumentError, match="one label"):
        RewardModel(model, tokenizer)


def test_a_model_without_a_head_is_refused(tokenizer):
    with pytest.raises(InvalidArgumentError, match="sequence classifier"):
        RewardModel(Qwen3Model(tiny_config(tokenizer)), tokenizer)
