"""Attention in float32 says the same as attention in bfloat16, and nothing changes elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from textgym.models.attention import use_float32_attention

CONFIGS = {
    "qwen3": Qwen3Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, initializer_range=0.3,
    ),
    "gpt-2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
}  # fmt: skip
CLASSES = {"qwen3": Qwen3ForCausalLM, "gpt-2": GPT2LMHeadModel}


@pytest.fixture(params=CONFIGS)
def models(request):
    torch.manual_seed(0)
    model = CLASSES[request.param](copy.deepcopy(CONFIGS[request.param])).eval()
    other = copy.deepcopy(model)
    use_float32_attention(other)
    return model, other


@pytest.fixture
def texts():
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, :5] = 0
    ids = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def test_float32_is_left_as_it_is(models, texts) -> None:
    outputs = [model(**texts).logits for model in models]
    assert torch.equal(*outputs)


def test_autocast_comes_closer_to_float32(models, texts) -> None:
    model, other = models
    exact = model(**texts).logits
    with torch.autocast("cpu", torch.bfloat16):
        usual, ours = model(**texts).logits, other(**texts).logits
    assert not torch.equal(usual, ours)
    rows = texts["attention_mask"].bool()

    def error(logits):
        return (logits.float() - exact)[rows].square().mean().sqrt()

    assert error(ours) < 1.1 * error(usual)
    assert error(ours) < 0.05 * exact[rows].std()


def test_gradients_under_autocast_agree(models, texts) -> None:
    gradients = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**texts).logits
        logits.float().log_softmax(-1)[texts["attention_mask"].bool()].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


def test_another_choice_of_attention_stays() -> None:
    model = Qwen3ForCausalLM._from_config(CONFIGS["qwen3"], attn_implementation="eager")
    use_float32_attention(model)
    assert model.config._attn_implementation == "eager"
