"""A reward model with another tokenizer is refused, and the error says which one defaulted."""

from __future__ import annotations

import re

import gymnasium as gym
import pytest

import textgym  # noqa: F401
from tests.conftest import make_tokenizer
from textgym.errors import InvalidArgumentError

make_functions = pytest.mark.parametrize("make", [gym.make, gym.make_vec])


@make_functions
def test_a_tokenizer_alone_names_the_default_reward_model(make, tokenizer):
    with pytest.raises(InvalidArgumentError, match="tokenizer of reward_model") as caught:
        make("ABC-RLHF-v0", tokenizer=tokenizer, prompts=["This film"])
    assert caught.value.argument == "tokenizer"
    assert 'reward_model="embedded" (the default)' in caught.value.remedy


@make_functions
def test_a_reward_model_alone_names_the_default_tokenizer(make, reward_model):
    with pytest.raises(InvalidArgumentError, match="differs from tokenizer") as caught:
        make("ABC-RLHF-v0", reward_model=reward_model, prompts=["This film"])
    assert caught.value.argument == "reward_model"
    assert 'tokenizer="embedded" (the default)' in caught.value.remedy


@make_functions
def test_a_classifier_of_another_vocabulary_is_refused_at_construction(make, classifier):
    """It has 340 embeddings, and the embedded tokenizer 4,096 tokens."""
    with pytest.raises(InvalidArgumentError, match=re.escape("pass RewardModel(model, tokenizer)")):
        make("ABC-RLHF-v0", reward_model=classifier, prompts=["This film"])


@make_functions
def test_if_both_are_passed_no_default_is_named(make, reward_model):
    other = make_tokenizer(["quite other words", "give quite other tokens"], vocab_size=300)
    with pytest.raises(InvalidArgumentError, match="give both the same tokenizer") as caught:
        make("ABC-RLHF-v0", tokenizer=other, reward_model=reward_model, prompts=["This film"])
    assert "default" not in caught.value.remedy
