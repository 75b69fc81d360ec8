"""Models of given shapes with random weights, and environments that fit them.

Cost depends on the shape alone, and texts of fixed length make it exact.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.models import RewardModel

from .shapes import Shape
from .work import Choices, Work

__all__ = ["make_agent", "make_model"]


def make_model(shape: Shape, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A language model of a shape.

    Args:
        shape: Its sizes.
        dtype: Of its weights.
        **settings: Further arguments of ``from_config``.
    """
    return _make(AutoModelForCausalLM, shape, dtype, {}, settings)


def _make(
    kind: Any, shape: Shape, dtype: torch.dtype, further: dict[str, Any], settings: dict[str, Any]
) -> PreTrainedModel:
    sizes = shape.config()
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes, **further)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind.from_config(config, dtype=dtype, **settings).eval()


def make_agent(
    policy: Shape, reward: Shape, work: Work, choices: Choices, log_dir: Any, **settings: Any
) -> PPO:
    """PPO on the environment with the default reward, from random weights.

    Every prompt and every completion has the length that ``work`` says.

    Args:
        policy: Shape of the language model.
        reward: Shape of the reward model.
        work: The episodes.
        choices: How the policy is trained.
        log_dir: Folder for the agent's metrics.
        **settings: Further arguments of ``from_config``.
    """
    frozen = torch.bfloat16 if choices.is_bfloat16 else torch.float32
    tokenizer = _tokenizer(policy.vocabulary)
    scorer = _make(AutoModelForSequenceClassification, reward, frozen, {"num_labels": 1}, settings)
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=work.episodes,
        autoreset_mode="Disabled",
        tokenizer=tokenizer,
        reward_model=RewardModel(scorer, tokenizer),
        prompts=[" ".join(["t9"] * work.prompt)],
        min_new_tokens=work.steps,
        max_new_tokens=work.steps,
    )
    dtype = frozen if choices.rank else torch.float32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sets it for GPT-2
        return PPO(
            make_model(policy, dtype, **settings),
            envs,
            episodes_per_iteration=work.episodes,
            num_epochs=work.epochs,
            minibatch_size=work.minibatch,
            learning_rate=1e-6,
            lora={"r": choices.rank} if choices.rank else None,
            dtype="bfloat16" if choices.is_bfloat16 else None,
            gradient_checkpointing=choices.recomputes,
            log_dir=log_dir,
        )


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
