"""Pairs of policy and reward model of several families, and a short training of each.

The models of other families are made here, on film reviews: small ones, of a kind that users bring.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.models import RewardModel, load_reward_model, load_tokenizer
from textgym.reviews import load_reviews
from textgym.reward_training import Labelled, RewardRecipe, train_reward_model
from textgym.wrappers.vector import CreditAssignment

__all__ = ["PAIRS", "train"]

NUM_REVIEWS = 3000
LENGTH = 64


@dataclass(frozen=True)
class Pair:
    """A policy with its tokenizer, and a reward model."""

    policy: Callable[[], tuple[Any, Any]]
    reward_model: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


def _texts() -> list[str]:
    return [review.text[:400] for review in load_reviews("train", "imdb")[:: 24000 // NUM_REVIEWS]]


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 2,000 tokens, trained on the reviews."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    if kind == "byte-level BPE":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:  # as sentencepiece does
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(_texts(), trainer)
    # An encoder sees the end of the text; a policy's prompt has none.
    template = "<s> $A </s>" if kind == "unigram" else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _language_model(kind: str, make: Callable[[int], Any]) -> tuple[Any, Any]:
    """A language model that has read the reviews for a few hundred steps."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(kind)
    model = make(len(tokenizer)).train()
    encoded = tokenizer(_texts())["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])
    rows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(400):
        batch = rows[torch.randint(len(rows), (16,), generator=torch.Generator().manual_seed(step))]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def _llama(vocab_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _gpt2(vocab_size: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_embd=128,
            n_layer=2,
            n_head=4,
            n_positions=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def _deberta() -> RewardModel:
    """A DeBERTa-v2 with unigrams, trained on beginnings of labelled reviews."""
    torch.manual_seed(0)
    tokenizer = _tokenizer("unigram")
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        num_labels=2,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )
    model = DebertaV2ForSequenceClassification(config)
    reviews = load_reviews("train")[::3]
    examples = [Labelled(review.text, review.label) for review in reviews]
    recipe = RewardRecipe(epochs=1, learning_rate=1e-3, max_length=48, prefix_share=0.5)
    train_reward_model(model, tokenizer, examples, recipe)
    return RewardModel(model, tokenizer)


def _by_name(policy: str) -> tuple[str, Any]:
    return policy, load_tokenizer(policy)


_SMALL = {"learning_rate": 1e-3}

PAIRS = {
    "embedded + embedded": Pair(lambda: _by_name("embedded"), lambda: "embedded"),
    "embedded + ModernBERT": Pair(lambda: _by_name("embedded"), lambda: "gold"),
    "Llama + embedded": Pair(
        lambda: _language_model("sentencepiece BPE", _llama), lambda: "embedded", _SMALL
    ),
    "GPT-2 + DeBERTa-v2": Pair(lambda: _language_model("byte-level BPE", _gpt2), _deberta, _SMALL),
    "SmolLM2-135M + ModernBERT": Pair(
        lambda: _by_name("smollm2"),
        lambda: "gold",
        {"lora": {"r": 16, "lora_alpha": 32}, "learning_rate": 1e-3},
    ),
}
"""By name: policy + reward model."""


def train(
    iterations: int, episodes: int, settings: dict[str, Any], pair_name: str, seed: int
) -> pd.DataFrame:
    """A row per iteration of PPO with ABC, with what the pair is made of.

    Args:
        iterations: Length of the run.
        episodes: Per iteration.
        settings: Of PPO, beyond those of the pair.
        pair_name: One of :data:`PAIRS`.
        seed: Of the agent.
    """
    pair = PAIRS[pair_name]
    policy, tokenizer = pair.policy()
    reward_model = pair.reward_model()
    envs = CreditAssignment(
        gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=episodes,
            autoreset_mode=AutoresetMode.DISABLED,
            tokenizer=tokenizer,
            reward_model=reward_model,
        ),
        "abc",
    )
    with tempfile.TemporaryDirectory() as folder:
        agent = PPO(
            policy,
            envs,
            seed=seed,
            episodes_per_iteration=episodes,
            log_dir=Path(folder),
            **(pair.settings | settings),
        )
        agent.learn(
            iterations * episodes * 16, callback=lambda row: row["time/iteration"] < iterations
        )
        history = pd.DataFrame(agent.history)
    loaded = load_reward_model(reward_model, tokenizer)
    rows = pd.DataFrame(
        {
            "iteration": history["time/iteration"].astype(int),
            "score": history["rollout/score_mean"].round(4),
            "kl": history["rollout/kl_exact"].round(4),
            "seconds": history["time/seconds"].round(2),
        }
    )
    rows["policy_parameters"] = agent.policy.model.num_parameters()
    rows["trained_parameters"] = sum(p.numel() for p in agent.trained_parameters.values())
    rows["reward_model_parameters"] = loaded.model.num_parameters()
    rows["policy_vocabulary"] = len(tokenizer)
    rows["reward_model_vocabulary"] = len(loaded.tokenizer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows["peak_mib"] = np.round(peak)
    return rows
