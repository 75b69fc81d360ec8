"""Reading growing texts equals reading them at once, and costs one token per token."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
)

from textgym.agents import LanguageModelPolicy
from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionMap,
    AttentionRow,
    Completions,
    GradientTimesInput,
    PrefixScores,
    RewardModel,
)
from textgym.models.incremental import IncrementalLanguageModel, IncrementalRewardModel, lean

VOCAB, LONGEST, N = 50, 20, 4

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,  # Waiting rows must not use a position beyond it.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 8,
}
GPT2_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": LONGEST,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DECODERS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3Config(**GROUPED, head_dim=8)),
    "qwen3, every other layer sliding": (
        Qwen3ForCausalLM,
        Qwen3ForSequenceClassification,
        Qwen3Config(**GROUPED, head_dim=8, **SLIDING),
    ),
    "gpt-2": (GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2Config(**GPT2_SIZES)),
    "llama": (LlamaForCausalLM, LlamaForSequenceClassification, LlamaConfig(**GROUPED)),
    "mistral, sliding": (
        MistralForCausalLM,
        MistralForSequenceClassification,
        MistralConfig(**GROUPED, sliding_window=4),
    ),
    "llama, biases and scaled positions": (
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, rope_parameters=SCALED),
    ),
    "llama, with a window in its configuration that it does not use": (
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        LlamaConfig(**GROUPED, sliding_window=4),
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2ForSequenceClassification, Qwen2Config(**GROUPED)),
    "gpt-neox": (GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, GPTNeoXConfig(**SIZES)),
}
decoders = pytest.mark.parametrize("name", DECODERS)


def make_language_model(name):
    torch.manual_seed(0)
    model, _, config = DECODERS[name]
    return model(config).eval()


def make_reward_model(name):
    torch.manual_seed(0)
    _, model, config = DECODERS[name]
    return RewardModel(model(config), tokenizer=None)


def draw(generator, length):
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


def growing_texts(steps, seed=0):
    """Texts of N rows per step: most grow, some start anew, some wait and are not requested."""
    generator = torch.Generator().manual_seed(seed)
    texts = [draw(generator, length) for length in (1, 7, 3, 4)]
    for _ in range(steps):
        waits = torch.rand(N, generator=generator) < 0.2
        if waits.all():
            continue
        yield [None if waits[row] else list(text) for row, text in enumerate(texts)]
        for row in (~waits).nonzero()[:, 0].tolist():
            luck = float(torch.rand(1, generator=generator))
            if luck < 0.15 or len(texts[row]) == LONGEST:
                texts[row] = draw(generator, 1 + int(8 * luck))
            elif luck < 0.9:
                texts[row] = texts[row] + draw(generator, 1)


def changing_texts(steps, seed=0):
    """The same, and the last tokens of some texts change: their number, or what they are."""
    generator = torch.Generator().manual_seed(seed)
    for number, texts in enumerate(growing_texts(steps, seed)):
        for row, text in enumerate(texts):
            if text is not None and (number + row) % 3:
                kept = text[: max(1, len(text) - int(torch.randint(4, (1,), generator=generator)))]
                new = draw(generator, int(torch.randint(5, (1,), generator=generator)))
                texts[row] = (kept + new)[:LONGEST]
        yield texts


@pytest.fixture
def sizes(language_model):
    """Number of tokens of every forward pass of the model, padding included."""
    counted = []
    handle = language_model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: counted.append(keywords["input_ids"].numel()),
        with_kwargs=True,
    )
    yield counted
    handle.remove()


@decoders
@pytest.mark.parametrize("packed", [True, False])
def test_growing_texts_give_the_logits_of_whole_texts(name, packed, monkeypatch):
    if not packed:  # as on a device without oneDNN
        monkeypatch.setattr(lean, "_can_pack", lambda weight: False)
    model = make_language_model(name)
    reader = IncrementalLanguageModel(model)
    assert reader.is_lean == (name != "gpt-neox")
    for texts in growing_texts(45):
        said = reader.read(texts)
        for row, text in enumerate(texts):
            if text is not None:
                with torch.no_grad():
                    full = model(torch.tensor([text]), output_hidden_states=True)
                hidden = full.hidden_states[-1][0, -1]
                torch.testing.assert_close(said.hidden[row], hidden, rtol=0, atol=1e-5)
                # Logits are up to 6, and processors round the two ways of reading differently.
                torch.testing.assert_close(said.logits[row], full.logits[0, -1], rtol=0, atol=2e-5)


@decoders
def test_growing_texts_give_the_scores_and_attention_of_one_forward_pass(name):
    readouts = [PrefixScores(), AttentionMap(), AttentionMap((0, -1), "max"), AttentionMap(0, 3)]
    check_reward_model(make_reward_model(name), readouts, steps=30)


LONG = {"max_position_embeddings": 51 + LONGEST}
OTHERS = {
    "roberta": (
        RobertaForCausalLM,
        # The texts hold no token of padding, which would have no position of its own.
        RobertaConfig(**SIZES | {"vocab_size": 51, "pad_token_id": 50, **LONG}, is_decoder=True),
    ),
    "modernbert": (
        ModernBertDecoderForCausalLM,
        ModernBertDecoderConfig(**SIZES, cls_token_id=1, sep_token_id=2, local_attention=4),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_give_the_logits_that_they_give_by_themselves(name):
    """RoBERTa's positions begin behind that of padding; ModernBERT calls its head a decoder."""
    torch.manual_seed(0)
    make, config = OTHERS[name]
    model = make(config).eval()
    reader, policy = IncrementalLanguageModel(model), LanguageModelPolicy(model)
    for texts in growing_texts(20):
        said = reader.read(texts)
        for row, text in enumerate(texts):
            if text is not None:
                ids = torch.tensor([[3, *text]])  # after a token of padding
                with torch.no_grad():
                    expected = model(ids[:, 1:]).logits[0, -1]
                logits = policy.next_token_logits(ids, torch.arange(ids.shape[1])[None] > 0)
                torch.testing.assert_close(said.logits[row], expected, rtol=0, atol=1e-5)
                torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-5)


class CountsFromOne(LlamaForCausalLM):
    """A decoder with positions of its own, which nothing in its parts tells."""

    def forward(self, input_ids=None, position_ids=None, **arguments):
        if position_ids is None:
            position_ids = torch.arange(1, input_ids.shape[1] + 1)[None] * 2
        return super().forward(input_ids, position_ids=position_ids, **arguments)


def test_a_model_that_counts_positions_otherwise_is_refused():
    with pytest.raises(InvalidArgumentError, match="cannot be read token by token"):
        IncrementalLanguageModel(CountsFromOne(DECODERS["llama"][2]))


def test_a_model_outside_the_attention_interface_is_read_from_its_eager_maps():
    torch.manual_seed(0)
    config = GPTJConfig(**GPT2_SIZES, rotary_dim=4, num_labels=1)
    reward_model = RewardModel(GPTJForSequenceClassification(config), tokenizer=None)
    with pytest.warns(UserWarning, match="output_attentions"):
        reward_model.attention_recorder()
    check_reward_model(reward_model, [PrefixScores(), AttentionMap()], steps=12)


@decoders
def test_texts_whose_ends_change_give_the_same(name):
    readouts = [PrefixScores(), AttentionMap((0, -1), "max")]
    check_reward_model(make_reward_model(name), readouts, 30, changing_texts, max_changed=4)


def test_a_changed_end_is_read_from_its_first_new_token(reward_model):
    counted = []
    body = reward_model.model.base_model
    handle = body.register_forward_pre_hook(
        lambda _module, _arguments, keywords: counted.append(tuple(keywords["input_ids"].shape)),
        with_kwargs=True,
    )
    reader = IncrementalRewardModel(reward_model, [PrefixScores()], max_changed=3)
    steps = [
        ([[5, 6, 7, 8, 9], [5, 6, 7, 8]], [(2, 5)]),
        ([[5, 6, 7, 10, 11], [5, 6, 7, 8]], [(2, 2)]),  # two new ones at the end of the first row
        ([[5, 6, 7, 10], [5, 7]], [(2, 1)]),  # ends that are gone: the last token is read anew
        ([[5, 1, 2, 3, 4], [5, 7]], [(1, 5)]),  # more than three
    ]
    for texts, passes in steps:
        batch = Completions.from_lists([ids[:1] for ids in texts], [ids[1:] for ids in texts])
        expected = reward_model.read(batch).score
        counted.clear()
        torch.testing.assert_close(reader.read(batch).score, expected, rtol=0, atol=1e-5)
        assert counted == passes
    handle.remove()


def check_reward_model(reward_model, readouts, steps, make_texts=growing_texts, max_changed=0):
    reader = IncrementalRewardModel(reward_model, readouts, max_changed)
    assert reader.is_lean == (reward_model.model.config.model_type not in ("gpt_neox", "gptj"))
    for texts in make_texts(steps, seed=1):
        requested = torch.tensor([text is not None for text in texts])
        ids = [text or [0] for text in texts]
        # The prompt is the first token; the reader does not care where it ends.
        batch = Completions.from_lists([one[:1] for one in ids], [one[1:] for one in ids])
        read = reader.read(batch, requested)
        expected = reward_model.read(batch.select(requested), readouts)
        width = read.input_ids.shape[1]
        torch.testing.assert_close(read.score, expected.score, rtol=0, atol=1e-5)
        torch.testing.assert_close(read.attention_mask, expected.attention_mask[:, :width])
        torch.testing.assert_close(read.completion_mask, expected.completion_mask[:, :width])
        for readout in readouts:
            full = expected[readout][:, :width]
            full = full[:, :, :width] if full.ndim == 3 else full
            torch.testing.assert_close(read[readout], full, rtol=0, atol=1e-5)


def test_a_single_text_is_read_without_a_mask(reward_model):
    """The kernel then gets no mask at all, and one query meets many keys."""
    reader = IncrementalRewardModel(reward_model, [AttentionMap()])
    for length in range(1, 8):
        batch = Completions.from_lists([[5]], [list(range(10, 10 + length))])
        expected = reward_model.read(batch, [AttentionMap()])[AttentionMap()]
        read = reader.read(batch)[AttentionMap()]
        torch.testing.assert_close(read, expected, rtol=0, atol=1e-6)


def test_left_padding_and_masked_tokens_are_left_out(reward_model):
    ids = torch.tensor([[9, 5, 9, 6, 7], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    batch = Completions(ids, mask, mask & (torch.arange(5) > 2))
    read = IncrementalRewardModel(reward_model, [PrefixScores()]).read(batch)
    assert read.input_ids[0, :3].tolist() == [5, 6, 7]
    assert read.completion_mask[0].tolist() == [False, True, True, False, False]
    torch.testing.assert_close(read.score, reward_model.read(batch).score)


def test_a_token_costs_one_token_and_a_known_text_nothing(language_model, sizes):
    reader = IncrementalLanguageModel(language_model)
    sizes.clear()  # what construction read
    text = list(range(10, 15))
    reader.read([text])
    for token in range(20, 30):
        text.append(token)
        reader.read([text])
        reader.read([list(text)])
    assert sizes == [5] + [1] * 10


def test_a_row_that_starts_anew_leaves_the_others_as_they_are(language_model, sizes):
    reader = IncrementalLanguageModel(language_model)
    sizes.clear()  # what construction read
    reader.read([[5, 6, 7], [8, 9, 10], [11, 12]])
    reader.read([[5, 6, 7, 8], [20, 21], [11, 12, 13]])
    assert sizes == [9, 3, 2]  # three texts of three columns; a token per row; the new text


def test_rows_not_requested_are_not_read(language_model, sizes):
    reader = IncrementalLanguageModel(language_model)
    sizes.clear()  # what construction read
    reader.read([[5, 6, 7], None])
    assert sizes == [3]
    said = reader.read([None, [8, 9]])
    assert sizes == [3, 2]
    alone = IncrementalLanguageModel(language_model).read([[5, 6, 7]])
    torch.testing.assert_close(said.logits[0], alone.logits[0])


def test_returned_outputs_do_not_change_later(language_model):
    reader = IncrementalLanguageModel(language_model)
    first = reader.read([[5, 6], [7, 8]])
    logits = first.logits.clone()
    reader.read([[5, 6, 9], [7, 8]])
    torch.testing.assert_close(first.logits, logits)


def test_another_number_of_rows_is_read_from_the_start(language_model):
    reader = IncrementalLanguageModel(language_model)
    pair = reader.read([[5, 6], [7, 8]])
    three = reader.read([[7, 8], [5, 6], [5, 6]])
    torch.testing.assert_close(three.logits, pair.logits[[1, 0, 0]])


def test_a_bfloat16_model_gives_float32_outputs(language_model):
    model = Qwen3ForCausalLM(language_model.config).bfloat16()
    said = IncrementalLanguageModel(model).read([[5, 6], [7, 8, 9]])
    assert said.hidden.dtype == said.logits.dtype == torch.float32


BERT = BertConfig(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,  # With one layer the keys of a text do not depend on what follows.
    num_attention_heads=2,
    intermediate_size=16,
    initializer_range=0.3,
)


def test_models_that_keep_a_state_read_whole_texts_anew():
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, initializer_range=0.3
    )
    model = MambaForCausalLM(config).eval()
    with pytest.warns(RuntimeWarning, match="whole texts are read anew"):
        reader = IncrementalLanguageModel(model)
    assert not reader.is_incremental
    for texts in growing_texts(20):
        said = reader.read(texts)
        for row, text in enumerate(texts):
            if text is not None:
                with torch.no_grad():
                    expected = model(torch.tensor([text])).logits[0, -1]
                torch.testing.assert_close(said.logits[row], expected, rtol=0, atol=1e-5)


def test_a_text_that_did_not_change_is_not_read_anew():
    torch.manual_seed(0)
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT2_SIZES))
    reader = IncrementalLanguageModel(model)
    first = reader.read([[1, 2], [3]])
    calls = []
    model.register_forward_pre_hook(
        lambda _module, _arguments, keywords: calls.append(keywords["input_ids"].tolist()),
        with_kwargs=True,
    )
    second = reader.read([[1, 2], [3, 4]])
    assert calls == [[[3, 4]]]
    assert torch.equal(first.logits[0], second.logits[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_that_looks_ahead_is_refused_for_its_architecture(autocast):
    torch.manual_seed(0)
    model = BertForMaskedLM(BERT)
    refused = pytest.raises(InvalidArgumentError, match="cannot be read token by token")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), refused as caught:
        IncrementalLanguageModel(model)
    assert "bfloat16" not in str(caught.value)


def test_a_model_that_looks_ahead_is_refused_in_bfloat16():
    torch.manual_seed(0)
    with pytest.raises(InvalidArgumentError, match=r"computed in bfloat16.*compute in float32"):
        IncrementalLanguageModel(BertForMaskedLM(BERT).bfloat16())


@pytest.mark.parametrize(("depth", "seed"), [(24, 0), (32, 3), (96, 1)])
def test_deep_models_are_read_under_autocast(depth, seed):
    """Some of these differ by 3e-3 between one token and many, by rounding alone."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=depth))
    with torch.autocast("cpu", torch.bfloat16):
        said = IncrementalLanguageModel(model).read([[5, 6, 7]])
    assert said.logits.isfinite().all()


def rounds_when_reading_one_token(language_model, error):
    """A copy whose logits are off by a factor when it reads one token under autocast."""
    model = copy.deepcopy(language_model)

    def spoil(_module, _arguments, keywords, output):
        if torch.is_autocast_enabled("cpu") and keywords["input_ids"].shape[1] == 1:
            output.logits = output.logits * (1 + error)
        return output

    model.register_forward_hook(spoil, with_kwargs=True)
    return model


def test_rounding_of_bfloat16_is_accepted_under_autocast(language_model):
    model = rounds_when_reading_one_token(language_model, 5e-3)  # as SmolLM2-135M has it
    with torch.autocast("cpu", torch.bfloat16):
        IncrementalLanguageModel(model)


def test_errors_beyond_rounding_are_blamed_on_the_precision(language_model):
    model = rounds_when_reading_one_token(language_model, 0.2)
    IncrementalLanguageModel(model)
    refused = pytest.raises(InvalidArgumentError, match=r"computed in bfloat16.*differs.* by 0\.")
    with torch.autocast("cpu", torch.bfloat16), refused as caught:
        IncrementalLanguageModel(model)
    assert "cannot be read token by token" not in str(caught.value)


# --- Reading a token without the model's own forward pass


lean_decoders = pytest.mark.parametrize("name", [name for name in DECODERS if name != "gpt-neox"])


def next_logits(reader, texts=([5, 6], [7, 8, 9])):
    """The logits after one more token, which a lean reader reads without the model."""
    reader.read([text[:-1] for text in texts])
    return reader.read(texts).logits


@lean_decoders
def test_single_tokens_do_not_run_the_model(name, monkeypatch):
    model = make_language_model(name)
    reader = IncrementalLanguageModel(model)
    assert reader.is_lean
    reader.read([[5], [7, 8]])
    monkeypatch.setattr(type(model), "forward", None)
    reader.read([[5, 6], [7, 8, 9]])


@lean_decoders
@pytest.mark.parametrize("autocast", [True, False])
def test_lean_reading_in_bfloat16_is_as_exact_as_the_models_own(name, autocast):
    model = make_language_model(name)
    exact = next_logits(IncrementalLanguageModel(model))
    if not autocast:
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        reader, own = IncrementalLanguageModel(model), IncrementalLanguageModel(model)
        own._can_be_lean = False
        errors = [(next_logits(one) - exact).abs().max() for one in (reader, own)]
        assert reader.is_lean
        assert errors[0] < 2 * errors[1] + 0.01


def attach_a_hook(model):
    model.get_decoder().layers[0].register_forward_hook(lambda *_: None)


def replace_a_layer(model):
    class Other(torch.nn.Linear):
        pass

    mlp = model.get_decoder().layers[0].mlp
    mlp.up_proj = Other(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)


def replace_a_forward(model):
    model.lm_head.forward = lambda hidden: torch.zeros(*hidden.shape[:-1], VOCAB)


def parametrize_a_weight(model):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def drop_out(model):
    model.config.attention_dropout = 0.5
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()


def use_double_precision(model):
    model.double()


@pytest.mark.parametrize(
    "alter",
    [
        attach_a_hook,
        replace_a_layer,
        replace_a_forward,
        parametrize_a_weight,
        drop_out,
        use_double_precision,
    ],
)
def test_an_altered_model_is_read_by_its_own_forward(alter):
    model = make_language_model("llama")
    reader = IncrementalLanguageModel(model)
    assert reader.is_lean
    alter(model)
    reader.forget()
    assert not reader.is_lean
    if alter is drop_out:
        return  # its logits are random
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]])).logits[0, -1].float()
    torch.testing.assert_close(next_logits(reader)[0], expected, rtol=0, atol=1e-5)


def test_large_models_are_not_copied(monkeypatch):
    model = make_language_model("llama")
    monkeypatch.setattr(lean, "_LARGEST", sum(p.numel() for p in model.parameters()) - 1)
    assert not IncrementalLanguageModel(model).is_lean


def test_an_architecture_read_wrongly_is_left_to_the_model(monkeypatch):
    monkeypatch.setitem(lean._ACTIVATIONS, "silu", torch.tanh)
    model = make_language_model("llama")
    reader = IncrementalLanguageModel(model)
    assert not reader.is_lean
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]])).logits[0, -1]
    torch.testing.assert_close(next_logits(reader)[0], expected, rtol=0, atol=1e-5)


def test_readers_of_one_model_share_its_copied_weights():
    model = make_language_model("llama")
    readers = [IncrementalLanguageModel(model) for _ in range(2)]
    for reader in readers:
        next_logits(reader)
    assert readers[0]._lean is readers[1]._lean
    readers[0].forget()
    assert model not in lean._shared


@pytest.mark.parametrize("forget", [True, False])
def test_changed_weights_are_noticed_when_texts_start_anew(forget):
    model = make_language_model("llama")
    reader = IncrementalLanguageModel(model)
    before = next_logits(reader)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    # Another reader of the model, whose owner knows nothing of the change, or the same one.
    reader = reader if forget else IncrementalLanguageModel(model)
    if forget:
        reader.forget()
    after = next_logits(reader)
    assert not torch.allclose(before, after, atol=1e-2)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6]])).logits[0, -1]
    torch.testing.assert_close(after[0], expected, rtol=0, atol=1e-4)


class WithOwnRead(RewardModel):
    """A reward model with a read method of its own."""

    def read(self, completions, readouts=()):
        return super().read(completions, readouts)


def test_a_head_of_zeros_can_be_read_and_trained():
    model = make_reward_model("llama").model
    torch.nn.init.zeros_(model.score.weight)
    reader = IncrementalRewardModel(RewardModel(model, tokenizer=None), [PrefixScores()])
    batch = Completions.from_lists([[5]], [[6, 7]])
    assert reader.read(batch).score.item() == 0
    torch.nn.init.normal_(model.score.weight)
    reader.forget()
    torch.testing.assert_close(reader.read(batch).score, RewardModel(model, None).read(batch).score)


def test_readouts_that_need_the_whole_text_are_refused(reward_model, classifier, tokenizer):
    encoder = RewardModel(BertForSequenceClassification(BERT), tokenizer=None)
    for model, readout in (
        (reward_model, GradientTimesInput()),
        (reward_model, AttentionRow()),
        (encoder, PrefixScores()),
        (WithOwnRead(classifier, tokenizer), PrefixScores()),
    ):
        with pytest.raises(InvalidArgumentError, match=r"use reward_model\.read"):
            IncrementalRewardModel(model, [readout])
    with pytest.raises(InvalidArgumentError, match="layers=7"):
        IncrementalRewardModel(reward_model, [AttentionMap(7)])


@pytest.mark.parametrize("texts", [[[]], [[5], []], [None], []])
def test_texts_without_a_token_are_refused(language_model, texts):
    with pytest.raises(InvalidArgumentError, match=r"token|one row"):
        IncrementalLanguageModel(language_model).read(texts)


def test_columns_without_a_text_are_cut(language_model):
    """Otherwise the cost of a step would grow with the number of episodes."""
    reader = IncrementalLanguageModel(language_model)
    for first in range(10, 20):
        text, other = [first], [first, 5]
        for token in range(30, 34):
            text.append(token)
            reader.read([text, other])
    assert reader._cache.get_seq_length() == 5
