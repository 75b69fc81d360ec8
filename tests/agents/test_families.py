"""Causal language models of every common family are policies that PPO trains.

Reading token by token is tested per family in tests/models/test_incremental.py; here is what a
policy needs beyond that. The models are tiny and random, with the vocabulary of the embedded
tokenizer.
"""

from __future__ import annotations

import copy

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OpenAIGPTConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RemBertConfig,
    RwkvConfig,
    SmolLM3Config,
    Starcoder2Config,
    T5Config,
    T5ForConditionalGeneration,
)

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.agents import ppo as ppo_module
from textgym.agents.rollout import collect_episodes
from textgym.errors import InvalidArgumentError

VOCAB = 4096
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # Large enough for distributions to differ by state.
    **TOKENS,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OLD_SIZES = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    **TOKENS,
}
WITHOUT_LIMIT = {name: size for name, size in SIZES.items() if "max_position" not in name}
SLIDING = {"head_dim": 8, "sliding_window": 6}  # shorter than the texts

LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

CONFIGS = {
    "GPT-2": GPT2Config(**OLD_SIZES),
    "GPT-J": GPTJConfig(**OLD_SIZES, rotary_dim=8),
    "GPT-Neo": GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]], window_size=6, initializer_range=0.2, **TOKENS,
    ),
    "GPT-NeoX (Pythia)": GPTNeoXConfig(**SIZES),
    "OPT": OPTConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        max_position_embeddings=64, word_embed_proj_dim=32, init_std=0.2, **TOKENS,
    ),
    "BLOOM": BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2, **TOKENS
    ),
    "MPT": MptConfig(
        vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.2,
        **TOKENS,
    ),
    "Falcon": FalconConfig(**WITHOUT_LIMIT),
    "Falcon with ALiBi": FalconConfig(**WITHOUT_LIMIT, alibi=True),
    "Llama (SmolLM2)": LlamaConfig(**GROUPED),
    "Mistral": MistralConfig(**GROUPED, **SLIDING),
    "Mixtral": MixtralConfig(**GROUPED, num_local_experts=4),
    "Qwen2": Qwen2Config(**GROUPED),
    "Qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "Qwen3-MoE": Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "SmolLM3": SmolLM3Config(**GROUPED),
    "Gemma": GemmaConfig(**GROUPED, head_dim=8),
    "Gemma 2": Gemma2Config(**GROUPED, **SLIDING),
    "Gemma 3": Gemma3TextConfig(**GROUPED, **SLIDING),
    "Phi": PhiConfig(**GROUPED),
    "Phi-3": Phi3Config(**GROUPED),
    "OLMo 2": Olmo2Config(**GROUPED),
    "StarCoder2": Starcoder2Config(**GROUPED),
    "Cohere": CohereConfig(**GROUPED),
    # These keep something else than keys and values, so whole texts are read anew.
    "GPT": OpenAIGPTConfig(**OLD_SIZES),
    "Mamba": MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2,
        **TOKENS,
    ),
    "Qwen3-Next": Qwen3NextConfig(
        **GROUPED, **LINEAR, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "Qwen3.5": Qwen3_5TextConfig(**GROUPED, **LINEAR),
    "LFM2": Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
}  # fmt: skip
ADAPTED = {
    "Mixtral": ["q_proj", "v_proj"],
    "Mamba": ["in_proj", "x_proj"],
}
"""Layers with adapters, where peft has no default that works."""
families = pytest.mark.parametrize("family", CONFIGS)


def make_model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).eval()


@pytest.fixture(scope="module")
def env():
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=4, autoreset_mode=AutoresetMode.DISABLED,
        min_new_tokens=4, max_new_tokens=10,
    )  # fmt: skip


@pytest.fixture
def make_agent(env, tmp_path):
    def make(model, **settings):
        shared = {"episodes_per_iteration": 4, "num_epochs": 1, "learning_rate": 1e-3}
        return PPO(model, env, log_dir=tmp_path / "logs", **{**shared, **settings})

    return make


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits


@families
def test_a_rollout_with_a_cache_has_the_logprobs_of_whole_texts(family, env, make_agent, generator):
    policy = make_agent(make_model(family)).policy
    rollout = collect_episodes(policy, env, 8, generator)  # rows restart, prompts differ in length
    with torch.no_grad():
        whole = policy.evaluate(*rollout.texts).logprobs
    torch.testing.assert_close(rollout.logprobs, whole, atol=2e-5, rtol=1e-5)
    assert rollout.logprobs[rollout.completion_mask].std() > 0.01


@families
def test_an_iteration_of_ppo_trains_and_can_be_saved_and_exported(
    family, env, make_agent, recorded, tmp_path
):
    calls = recorded(ppo_module, "policy_loss")
    agent = make_agent(make_model(family))
    before = copy.deepcopy(agent.policy.model.state_dict())
    row = agent.learn(1).history[0]
    assert all(torch.tensor(value).isfinite() for value in row.values())
    new, old = calls[0].args[:2]
    torch.testing.assert_close(new, old, atol=1e-5, rtol=1e-5)  # the first ratio is 1
    after = agent.policy.model.state_dict()
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(changed) >= 10

    agent.save(tmp_path / "agent")
    observation, _ = env.reset(seed=[1, 2, 3, 4])
    predictions = [
        one.predict(observation, deterministic=True)[0].tolist()
        for one in (agent, PPO.load(tmp_path / "agent"))
    ]
    assert predictions[0] == predictions[1]

    agent.save_pretrained(tmp_path / "policy")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert torch.equal(logits_of(exported), logits_of(agent.policy.model))


@families
def test_adapters_are_trained_alone_and_merge_into_the_export(family, make_agent, tmp_path):
    pytest.importorskip("peft")
    model = make_model(family)
    lora = {"target_modules": ADAPTED[family]} if family in ADAPTED else True
    agent = make_agent(model, lora=lora)
    agent.learn(1)
    frozen = {
        name.replace(".base_layer", ""): p
        for name, p in agent.policy.model.named_parameters()
        if not p.requires_grad
    }
    before = dict(model.named_parameters())
    assert set(frozen) == set(before)
    assert all(torch.equal(frozen[name], before[name]) for name in frozen)
    assert not torch.equal(logits_of(agent.policy.model), logits_of(model))
    agent.save_pretrained(tmp_path / "policy")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    merged, apart = logits_of(exported), logits_of(agent.policy.model)
    torch.testing.assert_close(merged, apart, atol=3e-5, rtol=1e-5)  # they add up in another order


# --- What is no policy


UNFIT = {
    "it looks ahead": (BertConfig(**SIZES, is_decoder=False), "cannot be read token by token"),
    "its state counts the padding": (
        RwkvConfig(
            vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, context_length=64, **TOKENS
        ),
        "depends on the padding before it",
    ),
    "its positions count the padding": (
        BartConfig(
            vocab_size=VOCAB, d_model=32, decoder_layers=2, decoder_attention_heads=4,
            decoder_ffn_dim=48, is_decoder=True, init_std=0.2, **TOKENS,
        ),
        "depends on the padding before it",
    ),
    "its head reads another state": (
        RemBertConfig(**SIZES, is_decoder=True, input_embedding_size=16, output_embedding_size=64),
        "its last hidden state has 32 numbers, and its head reads 64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", UNFIT)
def test_a_model_with_two_opinions_of_a_text_is_refused(make_agent, reason):
    """A rollout and an update read texts differently, and must find the same probabilities."""
    config, error = UNFIT[reason]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InvalidArgumentError, match=f"^policy='{type(model).__name__}'.*{error}"):
        make_agent(model)


def test_an_encoder_decoder_is_refused(make_agent):
    config = T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=r"^policy='T5For.*causal language model"):
        make_agent(T5ForConditionalGeneration(config))
