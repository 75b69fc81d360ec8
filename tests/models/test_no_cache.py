"""Reading whole texts builds no cache of keys and values for tokens that never come."""

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
    """All caches created."""
    made: list[DynamicCache] = []
    build = DynamicCache.__init__

    def note(self, *args, **kwargs) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(DynamicCache, "__init__", note)
    return made


def test_the_model_by_itself_creates_a_cache(caches, language_model):
    language_model(input_ids=BATCH.input_ids)
    assert caches


def test_reading_scores_creates_no_cache(caches, reward_model):
    for readouts in (set(), {AttentionRow(), PrefixScores()}):
        reward_model.read(BATCH, readouts)
        caches.clear()  # The first read also probes the model.
        reward_model.read(BATCH, readouts)
        assert not caches


def test_reading_a_policys_attention_creates_no_cache(caches, reward_model, language_model):
    assigner = PolicyAttentionCredit(language_model)
    scored = reward_model.read(BATCH, assigner.readouts)
    assigner(scored)
    caches.clear()  # The first call also probes the model.
    assigner(scored)
    assert not caches


def test_evaluating_a_policy_creates_no_cache(caches, language_model):
    policy = LanguageModelPolicy(language_model)
    mask = torch.ones(1, 5, dtype=torch.bool)
    policy.evaluate(torch.arange(5)[None], mask, mask[:, 2:])
    assert not caches
