"""The listed process, built once."""

from __future__ import annotations

import pytest

from tests.theory.process import make_policy, make_process, make_reward_model, make_tokenizer


@pytest.fixture(scope="session")
def word_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def process(word_tokenizer):
    return make_process(make_reward_model(word_tokenizer))


@pytest.fixture(scope="session")
def word_policy(word_tokenizer):
    return make_policy(word_tokenizer)
