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


EMOTIONS = {0: "anger", 1: "joy", 2: "fear"}


@pytest.fixture(scope="module")
def emotions(tokenizer):
    torch.manual_seed(7)
    config = tiny_config(tokenizer, num_labels=3, id2label=EMOTIONS, score_mean=0.5)
    return Qwen3ForSequenceClassification(config).eval()


def test_of_more_than_two_labels_one_must_be_named(emotions, tokenizer):
    with pytest.raises(InvalidArgumentError, match=r"3 labels \(anger, joy, fear\)"):
        RewardModel(emotions, tokenizer)
    with pytest.raises(InvalidArgumentError, match="must be one of anger, joy, fear"):
        RewardModel(emotions, tokenizer, score="logit")
    with pytest.raises(InvalidArgumentError, match="label='love'"):
        RewardModel(emotions, tokenizer, score="logit", label="love")
    with pytest.raises(InvalidArgumentError, match="from 0 to 2"):
        RewardModel(emotions, tokenizer, score="logit", label=3)
    with pytest.raises(InvalidArgumentError, match='"log-odds"'):
        RewardModel(emotions, tokenizer, score="odds", label="joy")


def test_the_score_is_what_was_chosen_of_the_label(emotions, tokenizer):
    (row,) = tokenizer("This film is a quiet wonder", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = emotions.model(input_ids=row[None]).last_hidden_state[0, -1]
        logits = emotions.score(states)
    p = logits.softmax(0)[1]
    expected = {
        "logit": logits[1],
        "log-probability": p.log(),
        "log-odds": p.log() - (1 - p).log(),
    }
    batch = Completions.from_lists([row[:2].tolist()], [row[2:].tolist()])
    for score, value in expected.items():
        model = RewardModel(emotions, tokenizer, score=score, label="Joy")
        torch.testing.assert_close(model.read(batch).score[0], value)
    model = RewardModel(emotions, tokenizer, score=lambda x: x[..., 1] - 2 * x[..., 2])
    torch.testing.assert_close(model.read(batch).score[0], logits[1] - 2 * logits[2])
    prefix_scores = model.read(batch, [PrefixScores()])[PrefixScores()]
    assert prefix_scores.shape == batch.input_ids.shape


@pytest.mark.parametrize("num_labels", [2, 3])
def test_labels_that_do_not_exclude_each_other_have_a_probability_each(num_labels, tokenizer):
    """Detectors of several kinds of toxicity are trained with a sigmoid per label."""
    torch.manual_seed(7)
    config = tiny_config(
        tokenizer, num_labels=num_labels, problem_type="multi_label_classification"
    )
    model = Qwen3ForSequenceClassification(config).eval()
    with torch.no_grad():
        logit = model(input_ids=BATCH.input_ids[:1]).logits[0, 1]
    p = logit.sigmoid()
    expected = {"logit": logit, "log-probability": p.log(), "log-odds": p.log() - (1 - p).log()}
    for score, value in expected.items():
        read = RewardModel(model, tokenizer, score=score, label=1).read(BATCH)
        torch.testing.assert_close(read.score[0], value)


def test_a_regression_has_a_logit_and_no_probability(tokenizer):
    torch.manual_seed(7)
    config = tiny_config(tokenizer, num_labels=2, problem_type="regression")
    model = Qwen3ForSequenceClassification(config).eval()
    with torch.no_grad():
        logits = model(input_ids=BATCH.input_ids[:1]).logits[0]
    for label in (0, 1):
        score = RewardModel(model, tokenizer, label=label).read(BATCH).score[0]
        torch.testing.assert_close(score, logits[label])
    with pytest.raises(InvalidArgumentError, match=r'^score=.log-odds.*regression.*"logit"'):
        RewardModel(model, tokenizer, score="log-odds")


def test_a_function_of_the_logits_must_keep_their_shape(emotions, tokenizer):
    with pytest.raises(InvalidArgumentError, match=r"tensor of shape \(2, 6\)"):
        RewardModel(emotions, tokenizer, score=lambda logits: logits)


def test_a_model_without_a_head_is_refused(tokenizer):
    with pytest.raises(InvalidArgumentError, match="sequence classifier"):
        RewardModel(Qwen3Model(tiny_config(tokenizer)), tokenizer)
