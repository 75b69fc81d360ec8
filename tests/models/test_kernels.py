"""The fast attention agrees with the library's, and the model gets its own kernel back."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from textgym.models.incremental import IncrementalLanguageModel
from textgym.models.kernels import fast_attention

CONFIGS = {
    "qwen3": Qwen3Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, initializer_range=0.3,
    ),
    "gpt-2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
}  # fmt: skip
CLASSES = {"qwen3": Qwen3ForCausalLM, "gpt-2": GPT2LMHeadModel}


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return CLASSES[request.param](copy.deepcopy(CONFIGS[request.param])).eval()


@pytest.fixture
def texts():
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, :5] = 0
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def run(model, texts, fast: bool):
    with fast_attention(model) if fast else contextlib.nullcontext():
        return model(**texts).logits


def test_whole_texts_in_float32_give_the_same_logits(model, texts) -> None:
    assert torch.equal(run(model, texts, fast=False), run(model, texts, fast=True))


def test_under_autocast_it_is_as_close_to_float32_as_the_library(model, texts) -> None:
    exact = run(model, texts, fast=False)
    with torch.autocast("cpu", torch.bfloat16):
        usual, ours = run(model, texts, fast=False), run(model, texts, fast=True)
    assert not torch.equal(usual, ours)
    rows = texts["attention_mask"].bool()

    def error(logits):
        return (logits.float() - exact)[rows].square().mean().sqrt()

    assert error(ours) < 1.1 * error(usual)
    assert error(ours) < 0.05 * exact[rows].std()


def test_gradients_under_autocast_agree(model, texts) -> None:
    gradients = []
    for fast in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(model, texts, fast)
        logits.float().log_softmax(-1)[texts["attention_mask"].bool()].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_growing_texts_are_read_like_whole_texts(model, dtype: str) -> None:
    """With a single query, rows that wait and rows that start anew."""
    steps = [[[3, 4], [5]], [[3, 4, 6], None], [[3, 4, 6, 7], [5, 8]], [[9], [5, 8, 10]]]
    reader = IncrementalLanguageModel(model)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    tolerance = 1e-5 if dtype == "float32" else 0.05
    for step in steps:
        with torch.no_grad(), autocast, fast_attention(model):
            logits = reader.read(step).logits
        for row, text in enumerate(step):
            if text is not None:
                with torch.no_grad():
                    expected = model(torch.tensor([text])).logits[0, -1]
                assert (logits[row] - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_model_gets_its_own_attention_back(model) -> None:
    context = fast_attention(model)
    with context:
        with context:
            pass
        assert model.config._attn_implementation == "textgym_sdpa"
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_another_kernel_keeps_it() -> None:
    model = Qwen3ForCausalLM._from_config(CONFIGS["qwen3"], attn_implementation="eager")
    with fast_attention(model):
        assert model.config._attn_implementation == "eager"
