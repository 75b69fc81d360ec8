"""The listed process is the whole process of the environment."""

from __future__ import annotations

import numpy as np
import pytest

from tests.theory.process import (
    HORIZON,
    MIN_NEW_TOKENS,
    PROMPTS,
    WORDS,
    random_logits,
    sparse_rewards,
    walk,
    walk_singly,
)
from textgym.exact import trajectory_probabilities


def test_every_legal_completion_is_listed_once(process):
    early = len(WORDS) ** MIN_NEW_TOKENS  # then EOS
    last = len(WORDS) ** (HORIZON - 1) * (len(WORDS) + 1)
    assert len(process.starts) == len(PROMPTS) * (early + last)
    texts = {
        (*prompt, -1, *text)
        for prompt, text in zip(process.prompt_ids, process.completion_ids, strict=True)
    }
    assert len(texts) == len(process.starts)
    probabilities = trajectory_probabilities(process.trajectories, random_logits(process, 0))
    assert probabilities.sum() == pytest.approx(1)


def test_listed_actions_are_those_that_the_environment_calls_legal(process):
    env = process.make_env(action_mask_in_info=True)
    row = len(process.starts) - 1  # of the second prompt, and as long as the budget allows
    text = process.completion_ids[row]
    assert len(text) == HORIZON
    _, info = env.reset(options={"prompt": PROMPTS[1], "max_new_tokens": HORIZON})
    masks = [info["action_mask"]]
    for token in text[:-1]:
        *_, info = env.step(token)
        masks.append(info["action_mask"])
    legal = process.trajectories.legal[process.trajectories.states[row]]
    np.testing.assert_array_equal(masks, legal)


def test_both_environments_end_each_completion_where_it_is_listed_and_pay_its_score(process):
    expected = sparse_rewards(process)
    rewards, finals = walk(process, process.make_envs())
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    np.testing.assert_allclose([final["score"] for final in finals], expected.sum(1), atol=1e-5)
    rows = range(0, len(expected), 5)
    rewards, _ = walk_singly(process.make_env(), process, rows)
    np.testing.assert_allclose(rewards, expected[rows], atol=1e-5)


def test_scores_differ_enough_for_the_theorems_to_say_something(process):
    scores = process.read().score
    assert scores.std() > 0.5
    assert scores.min() < -0.5 < 0.5 < scores.max()
