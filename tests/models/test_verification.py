"""Classifiers whose scores or attention cannot be trusted are refused, with the reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionRow,
    Completions,
    GradientTimesInput,
    PrefixScores,
    RewardModel,
)

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
        (
            "gemma3_text",
            {"use_bidirectional_attention": True, "num_key_value_heads": 2, "head_dim": 8},
            "score of a prefix depends on the tokens that follow",
        ),
    ],
)
def test_scores_that_cannot_be_trusted_are_refused(kind, changes, reason) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^reward_model=.*{reason}"):
        RewardModel(make(kind, **changes), None)


def test_a_gradient_of_another_score_is_refused() -> None:
    """ESM scales the embeddings of tokens, and leaves embeddings that it is given as they are."""
    reward_model = RewardModel(make("esm", mask_token_id=4), None)
    with pytest.raises(
        InvalidArgumentError, match=r"^reward_model=.*not that of their tokens.*gra"
    ):
        reward_model.check_readouts([GradientTimesInput()])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        # One looks for its padding, the other embeds each token with its neighbours.
        ("ctrl", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4}),
        (
            "mobilebert",
            {"embedding_size": 32, "intra_bottleneck_size": 32, "initializer_range": 1.0},
        ),
    ],
)
def test_a_score_does_not_depend_on_the_id_of_padding(kind, changes) -> None:
    model = make(kind, pad_token_id=5, **changes)
    ids = [60, 61, 62, 63]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, 0]
    for token in (0, 5, 70):
        batch = Completions.from_lists([[60], [60]], [[61, 62, 63], [50] * 6], pad_token_id=token)
        torch.testing.assert_close(RewardModel(model, None).read(batch).score[0], expected)


def test_the_longest_text_fits_the_table_of_positions() -> None:
    """RoBERTa's table begins with the positions up to that of padding."""
    reward_model = RewardModel(make("roberta", pad_token_id=1), None)
    assert reward_model.max_length == 62
    reward_model.read(Completions.from_lists([[50]], [[51] * 61]))


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_a_decoder_with_adapters_is_read_at_its_last_token(is_wrapped) -> None:
    """Also if that is an end token that doubles as padding, which the library would skip."""
    peft = pytest.importorskip("peft")
    model = make("llama", pad_token_id=2, initializer_range=0.3)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False
    )
    if is_wrapped:
        given = peft.get_peft_model(model, config).eval()
    else:
        config.modules_to_save = ["score"]
        model.add_adapter(config)
        given = model.eval()
    batch = Completions.from_lists([[60], [70]], [[61, 62, 2], [71, 72, 73, 74]], pad_token_id=2)
    readouts = [AttentionRow(), PrefixScores()]
    scored = RewardModel(given, None).read(batch, readouts)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        body = model.model(input_ids=torch.tensor([[60, 61, 62, 2]]), output_attentions=True)
        scores = model.score(body.last_hidden_state)[0, :, 0]
    torch.testing.assert_close(scored.score[0], scores[-1])
    torch.testing.assert_close(scored[PrefixScores()][0, :4], scores)
    row = body.attentions[-1][0].mean(0)[-1]
    torch.testing.assert_close(scored[AttentionRow()][0, :4], row, atol=1e-6, rtol=1e-5)


def test_trained_tokens_before_a_text_are_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    with pytest.raises(InvalidArgumentError, match=r"^reward_model=.*tokens before a text.*LoRA"):
        RewardModel(peft.get_peft_model(make("llama"), config), None)


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
