"""Classifiers whose scores or attention cannot be trusted are refused, with the reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, PrefixScores, RewardModel

pytestmark = pytest.mark.filterwarnings("ignore:.*attention interface")

SMALL = {
    "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "num_labels": 1,
}  # fmt: skip


def make(kind: str, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | changes)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "deberta-v2", "modernbert", "distilbert", "llama", "gpt2", "opt"]
)
def test_usual_classifiers_are_trusted(kind) -> None:
    RewardModel(make(kind), None).check_readouts([AttentionRow()])


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("falcon", {}, "asking for its attention changes its score"),
        ("squeezebert", {"embedding_size": 32}, "no distribution over the text"),
        ("longformer", {"attention_window": [4, 4]}, "cannot be read"),
    ],
)
def test_attention_that_cannot_be_trusted_is_refused(kind, changes, reason) -> None:
    reward_model = RewardModel(make(kind, **changes), None)
    reward_model.check_readouts([PrefixScores()])  # Its scores can be used.
    with pytest.raises(InvalidArgumentError, match=rf"^reward_model=.*{reason}.*credit that"):
        reward_model.check_readouts([AttentionRow()])


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("fnet", {}, "depends on the padding"),
        ("convbert", {"embedding_size": 32}, "depends on the padding"),
        ("nystromformer", {"segment_means_seq_len": 64, "num_landmarks": 8}, "cannot score a text"),
    ],
)
def test_scores_that_cannot_be_trusted_are_refused(kind, changes, reason) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^reward_model=.*{reason}"):
        RewardModel(make(kind, **changes), None)


def test_a_score_from_another_position_than_the_first_is_noticed() -> None:
    """The head reads the last token, where an encoder's is taken to read the first."""
    model = make("bert")
    head = torch.nn.Linear(32, 1)

    def forward(input_ids=None, attention_mask=None, inputs_embeds=None, **kwargs):
        output = model.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        last = attention_mask.sum(1) - 1
        states = output[0][torch.arange(len(last)), last]
        attentions = getattr(output, "attentions", None)
        return SequenceClassifierOutput(logits=head(states), attentions=attentions)

    model.forward = forward
    reward_model = RewardModel(model, None)
    with pytest.raises(InvalidArgumentError, match="from another position than the attention"):
        reward_model.check_readouts([AttentionRow()])


def test_a_model_without_embeddings_is_refused() -> None:
    model = make("bert")
    model.get_input_embeddings = lambda: SimpleNamespace()
    with pytest.raises(InvalidArgumentError, match="no table of embeddings"):
        RewardModel(model, None)
