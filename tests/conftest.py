"""Tiny models on real words, made in a second, without network."""

from __future__ import annotations

import inspect
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # As the command line does, in time.

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from textgym.credit import find_credit_assigner, get_credit_assigner
from textgym.models import RewardModel

torch.set_num_threads(1)  # the models are so small that threads would only wait for each other

SENTENCES = [
    "This film is a quiet wonder and I loved every minute of it.",
    "I was bored by the plot, but the actors are very good.",
    "A terrible waste of time: the worst film that I have seen.",
    "It is not bad at all, and the end made me cry.",
]


def make_tokenizer(texts=SENTENCES, vocab_size=340, pad_is_eos=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    pad = "</s>" if pad_is_eos else "<pad>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token="<s>", eos_token="</s>"
    )


def tiny_config(tokenizer, **changes):
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # Large enough for scores and attention to differ by text.
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return Qwen3Config(**{**sizes, **changes})


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def language_model(tokenizer):
    torch.manual_seed(1)
    return Qwen3ForCausalLM(tiny_config(tokenizer, initializer_range=0.05)).eval()


@pytest.fixture(scope="session")
def classifier(tokenizer):
    torch.manual_seed(2)
    config = tiny_config(tokenizer, num_labels=2, attention_profile=[0.2, 0.3, 0.5])
    return Qwen3ForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def reward_model(classifier, tokenizer):
    return RewardModel(classifier, tokenizer)


@pytest.fixture(scope="session")
def make_credit(language_model):
    """Makes an assigner by its id, with the arguments it cannot do without."""

    def make(name, **arguments):
        needs_policy = "policy" in inspect.signature(find_credit_assigner(name)).parameters
        return get_credit_assigner(
            name, **({"policy": language_model} if needs_policy else {}), **arguments
        )

    return make


@pytest.fixture(scope="session")
def tiny(tokenizer, reward_model):
    """Keyword arguments of a small environment with ragged prompts and lengths."""
    return {
        "tokenizer": tokenizer,
        "reward_model": reward_model,
        "prompts": ["I", "This film", "It is not bad at", "A terrible waste of time: the worst"],
        "min_new_tokens": 2,
        "max_new_tokens": 9,
    }
