"""Read-outs against the eager kernel, over architectures with random weights."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf

from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionMap,
    AttentionRow,
    Completions,
    GradientTimesInput,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    RewardModel,
)

ROW, MAP = AttentionRow(), AttentionMap()

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
    "num_labels": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_SIZES = {
    "vocab_size": 50,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 80,
    "initializer_range": 0.3,
    "num_labels": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}

DECODERS = {
    "gpt2": lambda: hf.GPT2Config(**GPT_SIZES),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=4),
    "gemma": lambda: hf.GemmaConfig(**{**SIZES, "num_key_value_heads": 1, "head_dim": 8}),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**SIZES),
    "opt": lambda: hf.OPTConfig(
        **{k: v for k, v in SIZES.items() if k not in ("intermediate_size", "initializer_range")},
        ffn_dim=48,
        word_embed_proj_dim=32,
        init_std=0.3,
    ),
}
ENCODERS = {
    "bert": lambda: hf.BertConfig(**SIZES),
    "roberta": lambda: hf.RobertaConfig(**SIZES),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4, initializer_range=0.3
    ),
    "modernbert": lambda: hf.ModernBertConfig(
        **SIZES, cls_token_id=1, sep_token_id=2, classifier_pooling="cls"
    ),
    "electra": lambda: hf.ElectraConfig(**SIZES, embedding_size=32),
}
EAGER_DECODERS = {"gptj": lambda: hf.GPTJConfig(**GPT_SIZES, rotary_dim=4)}
EAGER_ENCODERS = {
    "deberta-v2": lambda: hf.DebertaV2Config(
        **SIZES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
    )
}
FUSED = {**DECODERS, **ENCODERS}
ALL = {**FUSED, **EAGER_DECODERS, **EAGER_ENCODERS}
CAUSAL = {**DECODERS, **EAGER_DECODERS}
LENGTHS = (12, 7, 5)


def build(name):
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(ALL[name]()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reward_model = RewardModel(model, tokenizer=None)
        assert reward_model.is_fused == (name in FUSED)
    return model, reward_model


def ragged_batch(side="right"):
    generator = torch.Generator().manual_seed(1)
    prompts, completions = [], []
    for length in LENGTHS:
        ids = torch.randint(3, 50, (length,), generator=generator).tolist()
        prompts.append(ids[:2])
        completions.append(ids[2:])
    batch = Completions.from_lists(prompts, completions)
    if side == "right":
        return batch
    shifted = [torch.zeros_like(batch.input_ids) for _ in range(3)]
    for row, length in enumerate(LENGTHS):
        for new, old in zip(
            shifted, (batch.input_ids, batch.attention_mask, batch.completion_mask), strict=True
        ):
            new[row, -length:] = old[row, :length]
    return Completions(shifted[0], shifted[1].bool(), shifted[2].bool())


@torch.no_grad()
def eager_reference(model, batch):
    """Each row alone, without padding, with the library's own eager maps and its own pooling.

    Maps are (num_layers, num_heads, length, length).
    """
    model.set_attn_implementation("eager")
    maps, scores = [], []
    for row in range(len(batch)):
        ids = batch.input_ids[row][batch.attention_mask[row]][None]
        output = model(input_ids=ids, output_attentions=True)
        maps.append(torch.cat(output.attentions))
        scores.append((output.logits[0, 1] - output.logits[0, 0]).item())
    return maps, scores


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ALL)
def test_score_and_attention_equal_the_eager_kernel(name, side):
    model, reward_model = build(name)
    batch = ragged_batch(side)
    scored = reward_model.read(batch, {ROW, MAP})
    row_only = reward_model.read(batch, {ROW})
    maps, scores = eager_reference(model, batch)
    torch.testing.assert_close(scored.score, torch.tensor(scores), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(row_only[ROW], scored[ROW], atol=1e-6, rtol=0)
    for row, attention in enumerate(maps):
        expected = attention[-1].mean(0)
        real = batch.attention_mask[row]
        pooled = -1 if name in CAUSAL else 0
        torch.testing.assert_close(scored[MAP][row][real][:, real], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(scored[ROW][row, real], expected[pooled], atol=1e-5, rtol=0)
        assert scored[ROW][row, ~real].eq(0).all()
        assert scored[ROW][row].sum().item() == pytest.approx(1, abs=1e-5)


REDUCTIONS = {
    (0, "mean"): lambda maps: maps[0].mean(0),
    (-1, "max"): lambda maps: maps[1].amax(0),
    (1, 3): lambda maps: maps[1, 3],
    ((0, 1), "mean"): lambda maps: (maps[0].mean(0) + maps[1].mean(0)) / 2,
    ((-2, -1), "max"): lambda maps: (maps[0].amax(0) + maps[1].amax(0)) / 2,
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mistral", "bert", "modernbert", "gptj"])
def test_any_layers_and_heads_equal_the_eager_kernel(name, side):
    model, reward_model = build(name)
    batch = ragged_batch(side)
    asked = [kind(*which) for which in REDUCTIONS for kind in (AttentionRow, AttentionMap)]
    scored = reward_model.read(batch, [*asked, LayerAttentionMaps()])
    maps, _ = eager_reference(model, batch)
    pooled = -1 if name in CAUSAL else 0
    for row, attention in enumerate(maps):
        real = batch.attention_mask[row]
        for which, reduce in REDUCTIONS.items():
            of_row = scored[AttentionRow(*which)][row, real]
            of_map = scored[AttentionMap(*which)][row][real][:, real]
            torch.testing.assert_close(of_map, reduce(attention), atol=1e-5, rtol=0)
            torch.testing.assert_close(of_row, reduce(attention)[pooled], atol=1e-5, rtol=0)
        layers = scored[LayerAttentionMaps()][row][:, real][:, :, real]
        torch.testing.assert_close(layers, attention.mean(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert"])
def test_pooling_marks_the_position_whose_row_is_read(name, side):
    _, reward_model = build(name)
    scored = reward_model.read(ragged_batch(side), {ROW, MAP, Pooling()})
    followed = torch.einsum("bs,bst->bt", scored[Pooling()], scored[MAP])
    torch.testing.assert_close(followed, scored[ROW], atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert", "gptj"])
def test_gradient_times_input_is_the_derivative_with_respect_to_the_embedding_scale(name, side):
    """Scaling token t's embedding by 1 + ε changes the score by ε·Σ_d e_td ∂score/∂e_td."""
    model, reward_model = build(name)
    model.double()
    batch = ragged_batch(side)
    asked = reward_model.read(batch, {GradientTimesInput(), ROW})
    row, real = 1, batch.attention_mask[1]
    embeddings = reward_model.embed(batch.input_ids[row][real][None]).detach()
    mask = torch.ones(1, int(real.sum()), dtype=torch.bool)
    differences = []
    for token in range(embeddings.shape[1]):
        sides = []
        for step in (1e-4, -1e-4):
            moved = embeddings.clone()
            moved[0, token] *= 1 + step
            sides.append(reward_model.score_embeddings(moved, mask).item())
        differences.append((sides[0] - sides[1]) / 2e-4)
    torch.testing.assert_close(
        asked[GradientTimesInput()][row, real], torch.tensor(differences), atol=2e-2, rtol=2e-2
    )
    assert asked[GradientTimesInput()][row, ~real].eq(0).all()
    plain = reward_model.read(batch, {ROW})
    torch.testing.assert_close(asked.score, plain.score)
    torch.testing.assert_close(asked[ROW], plain[ROW])
    assert not asked.score.requires_grad


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gptj", "bert"])
def test_prefix_scores_equal_scoring_each_prefix_alone(name):
    _, reward_model = build(name)
    batch = ragged_batch()
    scored = reward_model.read(batch, {PrefixScores()})
    for row, length in enumerate(LENGTHS):
        ids = batch.input_ids[row].tolist()
        alone = [
            reward_model.read(Completions.from_lists([ids[:1]], [ids[1:end]])).score.item()
            for end in range(1, length + 1)
        ]
        torch.testing.assert_close(
            scored[PrefixScores()][row, :length], torch.tensor(alone), atol=1e-4, rtol=1e-4
        )
        assert scored[PrefixScores()][row, length:].eq(0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_end_token_that_is_also_padding_is_read(name):
    """With pad = eos, looking for padding ids would read the token before the end."""
    model, reward_model = build(name)
    model.config.pad_token_id = model.config.eos_token_id = 2
    ids = [5, 6, 7, 8, 2]
    long = [9, 10, 11, 12, 13, 14, 15]
    batch = Completions.from_lists([ids[:1], long[:1]], [ids[1:], long[1:]], pad_token_id=2)
    scored = reward_model.read(batch, {ROW, PrefixScores()})
    alone = reward_model.read(Completions.from_lists([ids[:1]], [ids[1:]]), {ROW})
    assert scored.score[0].item() == pytest.approx(scored[PrefixScores()][0, 4].item())
    torch.testing.assert_close(scored[ROW][0, :5], alone[ROW][0], atol=1e-6, rtol=0)
    assert abs(scored[PrefixScores()][0, 4] - scored[PrefixScores()][0, 3]) > 1e-4


def test_mean_pooling_reads_the_mean_of_the_rows():
    torch.manual_seed(0)
    config = hf.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, classifier_pooling="mean")
    model = hf.AutoModelForSequenceClassification.from_config(config).eval()
    batch = ragged_batch()
    attention = RewardModel(model, tokenizer=None).read(batch, {ROW})[ROW]
    maps, _ = eager_reference(model, batch)
    for row, expected in enumerate(maps):
        torch.testing.assert_close(
            attention[row, : LENGTHS[row]], expected[-1].mean(0).mean(0), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", ["llama", "deberta-v2"])
def test_the_callers_model_keeps_its_attention_kernel(name):
    model, reward_model = build(name)
    before = model.config._attn_implementation
    reward_model.read(ragged_batch(), {ROW})
    assert model.config._attn_implementation == before
    assert before != "textgym_recording_sdpa"


@pytest.mark.parametrize("name", [*EAGER_DECODERS, *EAGER_ENCODERS])
def test_the_eager_fallback_warns_once(name):
    model = hf.AutoModelForSequenceClassification.from_config(ALL[name]()).eval()
    reward_model = RewardModel(model, tokenizer=None)
    with pytest.warns(UserWarning, match="output_attentions=True"):
        reward_model.read(ragged_batch(), {ROW})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward_model.read(ragged_batch(), {ROW})


def test_the_fused_kernel_materialises_no_attention_map(monkeypatch):
    model, reward_model = build("llama")
    reward_model.read(ragged_batch(), {ROW})  # The recorder is built on first use.
    calls = []
    forward = model.base_model.forward

    def spy(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", spy)
    reward_model.read(ragged_batch(), {ROW, PrefixScores()})
    assert len(calls) == 1
    assert "output_attentions" not in calls[0]


@pytest.mark.parametrize(
    ("readout", "name"),
    [
        (AttentionRow(layers=2), "layers=2"),
        (AttentionMap(layers=(0, -3)), "layers=-3"),
        (LayerAttentionMaps(heads=4), "heads=4"),
        ("attention", "readouts='attention'"),
    ],
)
def test_layers_and_heads_that_the_model_lacks_are_refused(readout, name):
    _, reward_model = build("qwen3")
    with pytest.raises(InvalidArgumentError, match=name):
        reward_model.read(ragged_batch(), [readout])


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionRow(layers=()),
        lambda: AttentionRow(layers="last"),
        lambda: AttentionMap(heads="sum"),
        lambda: LayerAttentionMaps(heads=-1),
    ],
)
def test_invalid_requests_are_refused(make):
    with pytest.raises(InvalidArgumentError, match=r"layers|heads"):
        make()


def test_a_readout_that_was_not_requested_is_named():
    _, reward_model = build("qwen3")
    scored = reward_model.read(ragged_batch(), [ROW])
    with pytest.raises(InvalidArgumentError, match="PrefixScores"):
        scored[PrefixScores()]
