"""The models that are timed: random weights, since speed does not depend on them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from textgym.errors import InvalidArgumentError
from textgym.models import (
    Completions,
    RewardModel,
    load_language_model,
    load_reward_model,
    load_tokenizer,
)
from textgym.models.loading import has_bfloat16

__all__ = ["NAMES", "classifier", "config", "dtypes", "language_model", "reward_model", "texts"]

NAMES = ("gpt2-small", "llama-small", "llama-4x256", "llama-8x256", "embedded")
"""GPT-2 small (124 million parameters), a Llama of its size, one of the embedded models' size, one
of twice as many layers, and textgym's embedded models themselves."""

_LLAMAS = {
    "llama-small": (12, 768, 12, 2048, 50257),
    "llama-4x256": (4, 256, 4, 768, 4096),
    "llama-8x256": (8, 256, 4, 768, 4096),
}
"""Layers, width, heads, width of the MLP, vocabulary."""


def config(name: str, quick: bool = False) -> PretrainedConfig:
    """GPT-2 small or a Llama, for up to 1,024 tokens.

    The Llama of GPT-2's size has its layers, width, heads and vocabulary. Its MLP of 2,048 in three
    matrices has as many parameters as GPT-2's of 3,072 in two, and it shares the embeddings with
    the head, as GPT-2 does: 124 million parameters either way.

    Args:
        name: One of :data:`NAMES`, but not ``"embedded"``.
        quick: Two layers of 64 instead, for tests.
    """
    common: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0}
    if name == "gpt2-small":
        sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4} if quick else {}
        return GPT2Config(**common, **sizes)
    if name not in _LLAMAS:
        raise InvalidArgumentError("name", name, f"must be one of {', '.join(NAMES)}")
    layers, width, heads, mlp, vocab_size = _LLAMAS[name]
    if quick:
        layers, width, heads, mlp = 2, 64, 4, 172
    return LlamaConfig(
        **common,
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )


def dtypes() -> tuple[torch.dtype, ...]:
    """float32, and bfloat16 unless the processor would have to emulate it."""
    return (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,)


def language_model(name: str, quick: bool = False) -> PreTrainedModel:
    """A causal language model in evaluation mode; ``"embedded"`` is the same at any size."""
    if name == "embedded":
        return load_language_model(name)
    return _build(AutoModelForCausalLM, config(name, quick))


def classifier(name: str, quick: bool = False) -> PreTrainedModel:
    """A sequence classifier in evaluation mode."""
    if name == "embedded":
        return load_reward_model(name).model
    return _build(AutoModelForSequenceClassification, config(name, quick))


def reward_model(name: str, quick: bool = False) -> RewardModel:
    """The classifier as a reward model; the tokenizer is the embedded models'."""
    if name == "embedded":
        return load_reward_model(name)
    return RewardModel(classifier(name, quick), load_tokenizer("embedded"))


def _build(kind: Any, of: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.from_config(of, dtype=torch.float32).eval()


def texts(batch: int, num_tokens: int, num_prompt: int = 8) -> Completions:
    """Random texts, of which every fourth is a quarter shorter, so that there is padding.

    Args:
        batch: Number of texts.
        num_tokens: Length of the longest.
        num_prompt: How many of its tokens are the prompt.
    """
    generator = torch.Generator().manual_seed(0)
    # Not special tokens, and in every vocabulary.
    ids = torch.randint(3, 4096, (batch, num_tokens), generator=generator).tolist()
    lengths = [num_tokens - (num_tokens // 4 if row % 4 == 3 else 0) for row in range(batch)]
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    return Completions.from_lists(
        [row[:num_prompt] for row in rows], [row[num_prompt:] for row in rows]
    )
