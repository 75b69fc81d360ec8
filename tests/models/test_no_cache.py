"""Whoever reads whole texts keeps no keys and values for tokens that never come."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from textgym.agents import LanguageModelPolicy
from textgym.credit import PolicyAttentionCredit
from textgym.models import AttentionRow, Completions, PrefixScores

BATCH = Completions.from_lists([[1, 40], [1]], [[50, 60, 2], [70]])


@pytest.fixture
def caches(monkeypatch) -> list[DynamicCache]:
    """All that are made."""
    made: list[DynamicCache] = []
    build = DynamicCache.__init__

    def note(self, *args, **kwargs) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(DynamicCache, "__init__", note)
    return made


def test_a_model_left_alone_makes_one(caches, language_model):
    language_model(input_ids=BATCH.input_ids)
    assert caches


def test_reading_scores_makes_none(caches, reward_model):
    for readouts in (set(), {AttentionRow(), PrefixScores()}):
        reward_model.read(BATCH, readouts)
        caches.clear()  # A probe of the model, at its first use, is of two tokens.
        reward_model.read(BATCH, readouts)
        assert not caches


def test_the_attention_of_a_policy_makes_none(caches, reward_model, language_model):
    assigner = PolicyAttentionCredit(language_model)
    scored = reward_model.read(BATCH, assigner.readouts)
    assigner(scored)
    caches.clear()  # As above.
    assigner(scored)
    assert not caches


def test_evaluating_a_policy_makes_none(caches, language_model):
    policy = LanguageModelPolicy(language_model)
    mask = torch.ones(1, 5, dtype=torch.bool)
    policy.evaluate(torch.arange(5)[None], mask, mask[:, 2:])
    assert not caches
