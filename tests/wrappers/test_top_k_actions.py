"""Action i takes the i-th most likely legal token."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from tests.wrappers.helpers import (
    EOS,
    MODES,
    N,
    count_tokens,
    make_env,
    make_envs,
    num_new_tokens,
    scripted,
    texts,
)
from textgym.agents import ActionRules
from textgym.agents.distribution import masked_logprobs
from textgym.errors import InvalidArgumentError
from textgym.wrappers import ActionMask, LanguageModelFeatures, TopKActions, vector

K = 6


def expected_candidates(model, base, row=0):
    """From a plain forward, and the distribution that the bundled agents sample from."""
    with torch.no_grad():
        logits = model(torch.tensor([texts(base)[row]])).logits[0, -1]
    rules = ActionRules(base.task.vocab_size, base.task.eos_token_id, base.min_new_tokens)
    logprobs = masked_logprobs(logits, torch.tensor(num_new_tokens(base)[row]), rules)
    return logprobs.topk(K).indices.numpy()


def test_every_action_takes_its_candidate(tiny, language_model):
    env = TopKActions(make_env(tiny), K, language_model)
    assert env.action_space == gym.spaces.Discrete(K)
    for action in range(K):
        env.reset(seed=1, options={"max_new_tokens": 3})
        for _ in range(3):
            expected = expected_candidates(language_model, env.unwrapped)
            np.testing.assert_array_equal(env.candidates, expected)
            *_, terminated, _, info = env.step(action)
            assert info["token"] == expected[action] == texts(env)[0][-1]
        assert terminated


def test_the_end_token_is_a_candidate_only_where_it_is_legal(tiny, language_model):
    num_tokens = len(tiny["tokenizer"])
    env = TopKActions(make_env(tiny, min_new_tokens=3), num_tokens - 1, language_model)
    env.reset(seed=0, options={"max_new_tokens": 9})
    for step in range(6):
        others = np.setdiff1d(np.arange(num_tokens), env.candidates)  # one is left out
        assert (others == [EOS]) == (step < 3)
        env.step(5)


@pytest.mark.parametrize("mode", MODES)
def test_rows_take_the_candidates_of_their_own_texts(tiny, language_model, mode):
    envs = vector.TopKActions(make_envs(tiny, mode), K, language_model)
    assert envs.single_action_space == gym.spaces.Discrete(K)
    assert envs.action_space == gym.spaces.MultiDiscrete([K] * N)
    envs.reset(seed=2)
    base = envs.unwrapped
    for actions in scripted(K, 20):
        waiting = base.ended
        expected = [
            -1 if waiting[row] else expected_candidates(language_model, base, row)[actions[row]]
            for row in range(N)
        ]
        _, _, ended, _, infos = envs.step(actions)
        np.testing.assert_array_equal(base.last_step.tokens, expected)
        assert infos["_token"].tolist() == (~waiting).tolist()
        np.testing.assert_array_equal(infos["token"][~waiting], np.array(expected)[~waiting])
        if mode is AutoresetMode.SAME_STEP and ended.any():
            np.testing.assert_array_equal(infos["final_info"]["_token"], ended)
        if mode is AutoresetMode.DISABLED and ended.all():
            before = texts(base)
            envs.step(actions)  # All rows wait.
            assert texts(base) == before
            envs.reset(options={"reset_mask": ended})


def test_candidates_cost_no_pass_of_their_own_beside_features(tiny, language_model):
    for wrap in (
        lambda env: TopKActions(LanguageModelFeatures(env, language_model), K, language_model),
        lambda env: LanguageModelFeatures(TopKActions(env, K, language_model), language_model),
    ):
        env = wrap(make_env(tiny))
        with count_tokens(language_model) as sizes:
            env.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 5})
            prompt = len(texts(env)[0])
            for _ in range(5):
                env.step(1)
        assert sizes == [prompt, 1, 1, 1, 1, 1]


def test_candidates_of_other_actions_are_refused(tiny, language_model):
    env = make_env(tiny)
    with pytest.raises(InvalidArgumentError, match="TopKActions already"):
        TopKActions(TopKActions(env, K, language_model), 3, language_model)
    with pytest.raises(InvalidArgumentError, match="put it outside TopKActions"):
        TopKActions(ActionMask(env), K, language_model)
    shifted = gym.wrappers.TransformAction(env, lambda a: a + 1, gym.spaces.Discrete(300))
    with pytest.raises(InvalidArgumentError, match="are not the tokens"):
        TopKActions(shifted, K, language_model)
    envs = make_envs(tiny)
    with pytest.raises(InvalidArgumentError, match="TopKActions already"):
        vector.TopKActions(vector.TopKActions(envs, K, language_model), 3, language_model)
    with pytest.raises(InvalidArgumentError, match="put it outside TopKActions"):
        vector.TopKActions(vector.ActionMask(envs), K, language_model)


@pytest.mark.parametrize("k", [0, 1.5, True, 10_000])
def test_a_bad_number_of_candidates_is_refused(tiny, language_model, k):
    with pytest.raises(InvalidArgumentError, match="k="):
        TopKActions(make_env(tiny), k, language_model)


def test_actions_that_are_no_candidates_are_refused(tiny, language_model):
    env = TopKActions(make_env(tiny), K, language_model)
    env.reset(seed=0)
    for action in (-1, K, 0.5):
        with pytest.raises(InvalidArgumentError, match="index of a candidate"):
            env.step(action)
    envs = vector.TopKActions(make_envs(tiny), K, language_model)
    envs.reset(seed=0)
    for actions in (np.zeros(N - 1, dtype=int), np.full(N, -1), np.full(N, K), np.zeros(N)):
        with pytest.raises(InvalidArgumentError, match="indices of candidates"):
            envs.step(actions)


def test_stepping_before_reset_is_refused(tiny, language_model):
    with pytest.raises(ResetNeeded):
        TopKActions(make_env(tiny).unwrapped, K, language_model).step(0)
    with pytest.raises(ResetNeeded):
        vector.TopKActions(make_envs(tiny), K, language_model).step(np.zeros(N, dtype=int))


def test_rows_that_wait_are_not_read(tiny, language_model):
    envs = vector.TopKActions(make_envs(tiny, AutoresetMode.DISABLED), K, language_model)
    envs.reset(seed=0, options={"prompt": "I", "max_new_tokens": 2})
    first = np.array([True, False, False, False])
    envs.reset(options={"prompt": "I", "max_new_tokens": 9, "reset_mask": first})
    prompt = len(texts(envs)[0])
    with count_tokens(language_model) as sizes:
        for _ in range(3):
            envs.step(np.zeros(N, dtype=int))
    # All prompts; a token each; one more for the only row that goes on (the others are fed along).
    assert sizes == [N * prompt, N, N]
    known = envs._candidates._language_model._reader._texts
    assert [len(text) for text in known] == [prompt + 2, *[prompt + 1] * 3]
