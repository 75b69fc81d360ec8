"""A reward model with a tokenizer of its own: what it reads, and how credit comes back."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen3ForSequenceClassification,
)

from tests.conftest import tiny_config
from tests.tokenizer_families import FAMILIES
from textgym.credit import AttentionRolloutCredit, IntegratedGradientsCredit
from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionMap,
    AttentionRow,
    Completions,
    GradientTimesInput,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    RewardFunction,
    RewardModel,
)
from textgym.models.bridge import (
    IncrementalTextReader,
    TextRewardModel,
    TextTemplate,
    reading_tokens_of,
    texts_of_tokens,
)
from textgym.models.bridge.spans import text_rows

get_tokenizer = functools.cache(lambda family: FAMILIES[family]())
families = pytest.mark.parametrize("family", FAMILIES)
pairs = pytest.mark.parametrize(
    ("family", "other"), [(a, b) for a in FAMILIES for b in FAMILIES if a != b]
)
texts = st.text(
    st.one_of(
        st.sampled_from("act ing wonderful film. "), st.characters(exclude_categories=["Cs"])
    ),
    max_size=24,
)
few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@functools.cache
def make_reward_model(kind, family):
    torch.manual_seed(3)
    tokenizer = get_tokenizer(family)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
        "num_labels": 2,
    }
    gpt2 = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = {
        "bert": lambda: BertForSequenceClassification(BertConfig(**sizes)),
        "deberta": lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**sizes)),
        "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**sizes)),
        "gpt2": lambda: GPT2ForSequenceClassification(
            GPT2Config(**gpt2, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id)
        ),
    }[kind]()
    return RewardModel(model, tokenizer)


def encode(tokenizer, prompt, *completions):
    """Completions of one prompt, without the special tokens behind a text."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompt_ids = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
    return Completions.from_lists([prompt_ids] * len(ids), ids)


def score_text(reward_model, text):
    """What the model says of a text that its own tokenizer encodes, without textgym."""
    inputs = reward_model.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = reward_model.model(**inputs).logits[0]
    return (logits[1] - logits[0]).item()


# --- Characters


@families
@few
@given(text=texts)
def test_tokens_cover_the_decoded_text_in_order(family, text):
    tokenizer = get_tokenizer(family)
    ids = tokenizer(text)["input_ids"]
    (found,) = texts_of_tokens(tokenizer, [ids])
    assert found.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(found.bounds) == len(ids) + 1
    assert found.bounds[0] == 0.0
    assert found.bounds[-1] == len(found.text)
    assert (np.diff(found.bounds) >= 0).all()


@families
@few
@given(prompt=texts, completion=texts)
def test_whole_texts_are_those_of_the_tokens(family, prompt, completion):
    tokenizer = get_tokenizer(family)
    batch = encode(tokenizer, prompt, completion)
    if not batch.attention_mask.any():
        return
    (slow,), (fast,) = (text_rows(tokenizer, batch, every_token=one) for one in (True, False))
    assert (fast.prompt, fast.completion) == (slow.prompt, slow.completion)


def test_the_bytes_of_a_character_share_it_and_special_tokens_have_none():
    tokenizer = get_tokenizer("byte-level BPE")
    ids = tokenizer("a 😁!")["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    (found,) = texts_of_tokens(tokenizer, [ids])
    widths = dict(zip(pieces, np.diff(found.bounds), strict=True))
    assert widths["<s>"] == 0.0
    assert widths["a"] == widths["!"] == 1.0
    bytes_ = [p for p in pieces if p not in ("<s>", "a", "Ġ", "!")]
    assert sum(widths[p] for p in bytes_) == pytest.approx(1.0)
    assert len({round(float(widths[p]), 6) for p in bytes_}) == 1


# --- Values split among tokens


@pairs
@few
@given(prompt=texts, completion=texts)
def test_no_value_is_lost_between_two_tokenizers(family, other, prompt, completion):
    tokenizer = get_tokenizer(family)
    batch = encode(tokenizer, prompt, completion)
    if not batch.attention_mask.any():
        return
    reward_model = TextRewardModel(make_reward_model("bert", other), tokenizer)
    try:
        scored = reward_model.read(batch, [AttentionRow()])
    except InvalidArgumentError as error:
        assert "has no text" in str(error)  # noqa: PT017
        return
    torch.manual_seed(0)
    values = torch.rand(scored.source.input_ids.shape)
    split = scored.to_policy(values)
    # Summed in float64, so that the sums themselves do not round.
    total = split.double().sum(1) + scored.outside(values).double()
    torch.testing.assert_close(total, values.double().sum(1), rtol=1e-6, atol=1e-6)
    text = scored.source[AttentionRow()]
    total = scored[AttentionRow()].sum(1) + scored.outside(text)
    torch.testing.assert_close(total, torch.ones(1), rtol=0, atol=1e-5)


def test_a_token_is_split_in_proportion_to_the_characters():
    tokenizer = get_tokenizer("characters")
    reward_model = TextRewardModel(make_reward_model("bert", "WordPiece"), tokenizer)
    scored = reward_model.read(encode(tokenizer, "a film ", "wonder"))
    own = reward_model.tokenizer.convert_ids_to_tokens(scored.source.input_ids[0].tolist())
    for column, piece in enumerate(own):
        values = torch.zeros(1, len(own))
        values[0, column] = 6.0
        split = scored.to_policy(values)[0]
        length = 0 if piece in ("[CLS]", "[SEP]") else len(piece.removeprefix("##"))
        assert split[split > 0].tolist() == pytest.approx([6.0 / max(1, length)] * length)


# --- Scores


@pytest.mark.parametrize(
    ("kind", "other"),
    [("bert", "WordPiece"), ("deberta", "unigram"), ("llama", "Llama"), ("gpt2", "byte-level BPE")],
)
@families
def test_scores_are_those_of_the_texts(kind, other, family):
    if other == family:
        return
    tokenizer, own = get_tokenizer(family), make_reward_model(kind, other)
    reward_model = TextRewardModel(own, tokenizer)
    batch = encode(tokenizer, "This film", " is acting so naïve", " a bore")
    scored = reward_model.read(batch, [PrefixScores()])
    decoded = [
        tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    expected = [score_text(own, text) for text in decoded]
    assert scored.score.tolist() == pytest.approx(expected, abs=2e-4)
    for row in range(2):
        (columns,) = batch.completion_mask[row].nonzero(as_tuple=True)
        whole, last = decoded[row], int(columns[-1])
        for column in [int(columns[0]) - 1, *columns.tolist()]:
            prefix = tokenizer.decode(batch.input_ids[row, : column + 1], skip_special_tokens=True)
            if whole.startswith(prefix):  # Otherwise the prefix ends inside a character.
                found = scored[PrefixScores()][row, column].item()
                assert found == pytest.approx(score_text(own, prefix), abs=2e-4)
        assert scored[PrefixScores()][row, last].item() == pytest.approx(expected[row], abs=2e-4)


def test_with_the_same_tokenizer_it_reads_what_the_model_reads(reward_model, tokenizer):
    batch = encode(tokenizer, "This film", " is not bad at all", " is a")
    readouts = [PrefixScores(), AttentionRow(), GradientTimesInput()]
    direct = reward_model.read(batch, readouts)
    through_text = TextRewardModel(reward_model, tokenizer).read(batch, readouts)
    torch.testing.assert_close(through_text.score, direct.score)
    for readout in readouts:
        own = through_text[readout]
        torch.testing.assert_close(
            own[batch.completion_mask], direct[readout][batch.completion_mask]
        )
    start = through_text.outside(through_text.source[AttentionRow()])
    torch.testing.assert_close(start, direct[AttentionRow()][:, 0])  # the start token


def test_words_that_look_like_special_tokens_are_text():
    tokenizer = get_tokenizer("byte-level BPE")
    reward_model = TextRewardModel(make_reward_model("bert", "WordPiece"), tokenizer)
    scored = reward_model.read(encode(tokenizer, "a film", " [SEP] good"))
    separator = reward_model.tokenizer.sep_token_id
    assert (scored.source.input_ids == separator).sum() == 1


# --- Credit


@pytest.mark.parametrize("name", ["attention-rollout", "integrated-gradients"])
def test_methods_that_need_whole_maps_compute_in_the_reward_models_tokens(name, make_credit):
    tokenizer = get_tokenizer("characters")
    own = make_reward_model("llama", "Llama")
    reward_model = TextRewardModel(own, tokenizer)
    assigner = make_credit(name, beta=1.0)
    scored = reward_model.read(encode(tokenizer, "This film", " is a bore"), assigner.readouts)
    if isinstance(assigner, AttentionRolloutCredit):
        found, expected = assigner.weights(scored), assigner.weights(scored.source)
    else:
        assert isinstance(assigner, IntegratedGradientsCredit)
        found, expected = assigner.attributions(scored), assigner.attributions(scored.source)
    torch.testing.assert_close(found, scored.to_policy(expected))
    assert found[scored.completion_mask].abs().sum() > 0
    assert assigner(scored).sum().item() == pytest.approx(scored.score.item(), abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("abc", "attention-rollout", "abc-d", "gradient-times-input", "integrated-gradients"),
        *("occlusion", "shapley", "prefix-score", "uniform", "random", "shuffled-abc", "sparse"),
    ],
)
def test_credit_sums_to_the_score_through_another_tokenizer(name, make_credit, tokenizer):
    assigner = make_credit(name)
    reward_model = TextRewardModel(make_reward_model("bert", "WordPiece"), tokenizer)
    batch = encode(tokenizer, "This film", " is not bad at all", " made me cry")
    scored = reward_model.read(batch, assigner.readouts)
    credit = assigner(scored)
    torch.testing.assert_close(credit.sum(1), scored.score, rtol=0, atol=1e-4)
    assert credit[~batch.completion_mask].abs().max() == 0


def test_a_selection_of_rows_keeps_its_alignment(tokenizer):
    reward_model = TextRewardModel(make_reward_model("bert", "WordPiece"), tokenizer)
    batch = encode(tokenizer, "This film", " is not bad at all", " made me cry")
    readouts = [LayerAttentionMaps(), Pooling()]
    scored = reward_model.read(batch, readouts)
    weights = AttentionRolloutCredit().weights(scored)
    rows = torch.tensor([1])
    torch.testing.assert_close(AttentionRolloutCredit().weights(scored.select(rows)), weights[rows])


def test_what_exists_in_the_models_tokens_only_says_so(tokenizer):
    reward_model = TextRewardModel(make_reward_model("bert", "WordPiece"), tokenizer)
    scored = reward_model.read(encode(tokenizer, "This film", " is a bore"), [AttentionMap()])
    with pytest.raises(InvalidArgumentError, match=r"scored\.source"):
        scored[AttentionMap()]


# --- Growing texts


@pytest.mark.parametrize(
    ("kind", "other"), [("llama", "byte-level BPE"), ("gpt2", "Llama"), ("bert", "WordPiece")]
)
def test_a_growing_text_is_encoded_anew_at_every_token(kind, other):
    """Characters make the reward model's tokens change: "act" and "acting"."""
    tokenizer = get_tokenizer("characters")
    reward_model = TextRewardModel(make_reward_model(kind, other), tokenizer)
    reader = IncrementalTextReader(reward_model)
    assert reader.is_incremental == (kind != "bert")
    whole = encode(tokenizer, "The ", "acting", "actor ")
    expected = reward_model.read(whole, [PrefixScores()])[PrefixScores()]
    merged = False
    lengths = []
    for end in range(5, 11):
        texts = Completions(
            whole.input_ids[:, :end], whole.attention_mask[:, :end], whole.completion_mask[:, :end]
        )
        scored = reader.read(texts)
        torch.testing.assert_close(
            scored[PrefixScores()][:, end - 1], expected[:, end - 1], rtol=0, atol=2e-4
        )
        torch.testing.assert_close(scored[PrefixScores()][:, 3], expected[:, 3], rtol=0, atol=2e-4)
        text = tokenizer.decode(texts.input_ids[0])
        lengths.append(len(reward_model.tokenizer(text)["input_ids"]))
        merged |= len(lengths) > 1 and lengths[-1] <= lengths[-2]
    assert merged  # Otherwise no token changed, and this test shows nothing.


def test_rows_that_are_not_requested_are_left_alone(tokenizer):
    reward_model = TextRewardModel(make_reward_model("llama", "Llama"), tokenizer)
    reader = IncrementalTextReader(reward_model)
    batch = encode(tokenizer, "This film", " is a", " was")
    only = reader.read(batch, torch.tensor([False, True]))
    assert len(only) == 1
    expected = reward_model.read(batch).score
    torch.testing.assert_close(only.score, expected[1:], rtol=0, atol=2e-4)
    torch.testing.assert_close(reader.read(batch).score, expected, rtol=0, atol=2e-4)


def test_of_many_prompts_only_the_latest_keep_their_score(tokenizer, monkeypatch):
    monkeypatch.setattr("textgym.models.bridge.incremental._MOST_PROMPTS", 3)
    scored = []

    def count(prompts, completions):
        scored.extend(prompt for prompt, end in zip(prompts, completions, strict=True) if not end)
        return [len(prompt + end) for prompt, end in zip(prompts, completions, strict=True)]

    reader = IncrementalTextReader(RewardFunction(count, tokenizer))
    for prompt in ["A", "B", "C", "A", "D", "A", "B"]:
        completions = encode(tokenizer, prompt, " is", " was")
        values = reader.read(completions)[PrefixScores()]
        columns = (~completions.completion_mask & completions.attention_mask).sum(1) - 1
        assert values.gather(1, columns[:, None]).tolist() == [[len(prompt)]] * 2
        assert len(reader._prompt_scores) <= 3
    # When D came, B was the one read the longest time ago.
    assert scored == ["A", "B", "C", "D", "B"]


def test_all_prompts_of_a_large_batch_keep_their_score(tokenizer, monkeypatch):
    monkeypatch.setattr("textgym.models.bridge.incremental._MOST_PROMPTS", 1)
    calls = []

    def count(prompts, completions):
        calls.append(completions)
        return [0.0] * len(prompts)

    reader = IncrementalTextReader(RewardFunction(count, tokenizer))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("This", "The film")]
    for end in ([], ids[0]):
        reader.read(Completions.from_lists(ids, [end, end]))
    assert len(calls) == 3  # two for the texts, one for the prompts


def test_a_reward_model_without_a_tokenizer_is_refused(tokenizer, classifier):
    with pytest.raises(InvalidArgumentError, match="has no tokenizer"):
        reading_tokens_of(tokenizer, RewardModel(classifier, None))


# --- Templates


CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}</s>{% endfor %}"


def test_a_template_stands_around_the_text_and_takes_no_credit():
    tokenizer = get_tokenizer("byte-level BPE")
    own = make_reward_model("llama", "Llama")
    reward_model = TextRewardModel(own, tokenizer, "Review: {prompt} ... {completion} The end.")
    scored = reward_model.read(encode(tokenizer, "This film", "is a bore"), [AttentionRow()])
    text = "Review: This film ... is a bore The end."
    assert scored.score.item() == pytest.approx(score_text(own, text), abs=2e-4)
    ids = own.tokenizer(text)["input_ids"]
    assert scored.source.input_ids[0].tolist() == ids
    inside = scored[AttentionRow()].sum() + scored.outside(scored.source[AttentionRow()])
    assert inside.item() == pytest.approx(1.0, abs=1e-5)
    words = own.tokenizer.convert_ids_to_tokens(
        scored.source.input_ids[0][scored.source.completion_mask[0]].tolist()
    )
    # A token that the completion shares with its surroundings belongs to it.
    assert "is a bore" in "".join(words).replace("▁", " ")


def test_a_chat_template_has_the_prompt_as_the_users_message(tokenizer):
    policy = get_tokenizer("characters")
    tokenizer = FAMILIES["Llama"]()
    tokenizer.chat_template = CHAT
    torch.manual_seed(4)
    own = RewardModel(make_reward_model("llama", "Llama").model, tokenizer, template="chat")
    reward_model = TextRewardModel(own, policy)
    assert reward_model.template == TextTemplate(
        "<|user|>", "</s><|assistant|>", "</s>", has_special_tokens=True
    )
    scored = reward_model.read(encode(policy, "Is it good?", "It is."))
    messages = [
        {"role": "user", "content": "Is it good?"},
        {"role": "assistant", "content": "It is."},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert scored.source.input_ids[0].tolist() == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{completion} {prompt}", "behind it"),
        ("no places", "must have {prompt}"),
        ("chat", "no chat template"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template, message, tokenizer):
    own = make_reward_model("llama", "Llama")
    with pytest.raises(InvalidArgumentError, match=message):
        TextRewardModel(own, tokenizer, template)


def test_a_text_that_is_too_long_for_the_model_is_an_error_with_its_length(tokenizer):
    torch.manual_seed(0)
    own = get_tokenizer("characters")
    config = tiny_config(own, num_labels=2, max_position_embeddings=12, bos_token_id=None)
    reward_model = TextRewardModel(
        RewardModel(Qwen3ForSequenceClassification(config), own), tokenizer
    )
    with pytest.raises(InvalidArgumentError, match="it has 19 of the reward model's tokens"):
        reward_model.read(encode(tokenizer, "This film", " is a bore"))
