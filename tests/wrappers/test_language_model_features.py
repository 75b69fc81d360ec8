"""Features are what the language model computes for the text, whatever became of the row."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.wrappers.helpers import (
    EOS,
    MODES,
    N,
    count_tokens,
    make_env,
    make_envs,
    play,
    scripted,
    texts,
)
from textgym.errors import InvalidArgumentError
from textgym.wrappers import LanguageModelFeatures, vector

SIZE = 32  # hidden size of the tiny model, and of its embeddings


def expected_hidden(model, text):
    with torch.no_grad():
        output = model(torch.tensor([text]), output_hidden_states=True)
    return output.hidden_states[-1][0, -1].numpy()


def test_the_observation_is_the_last_hidden_state_of_the_newest_token(tiny, language_model):
    env = LanguageModelFeatures(make_env(tiny), language_model)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (SIZE,), np.float32)
    observation, _ = env.reset(seed=0, options={"max_new_tokens": 5})
    for action in (40, 50, 60, 70, 80):
        expected = expected_hidden(language_model, texts(env)[0])
        np.testing.assert_allclose(observation, expected, atol=1e-5)
        assert observation in env.observation_space
        observation, *_ = env.step(action)
    assert texts(env)[0][-5:] == [40, 50, 60, 70, 80]
    expected = expected_hidden(language_model, texts(env)[0])
    np.testing.assert_allclose(observation, expected, atol=1e-5)  # of the finished text


def test_candidates_follow_with_log_probabilities_and_embeddings(tiny, language_model):
    env = LanguageModelFeatures(make_env(tiny), language_model, top_k=3)
    observation, _ = env.reset(seed=0)
    with torch.no_grad():
        logits = language_model(torch.tensor(texts(env))).logits[0, -1]
    logits[EOS] = -torch.inf  # not legal yet
    top = logits.log_softmax(0).topk(3)
    embeddings = language_model.get_input_embeddings().weight[top.indices].detach()
    assert observation.shape == (SIZE + 3 + 3 * SIZE,)
    np.testing.assert_allclose(observation[SIZE : SIZE + 3], top.values, atol=1e-5)
    np.testing.assert_allclose(observation[SIZE + 3 :].reshape(3, SIZE), embeddings, atol=1e-6)


def test_progress_is_the_share_of_the_largest_budget(tiny, language_model):
    env = LanguageModelFeatures(make_env(tiny), language_model, progress=True)
    steps = play(env, [40] * 9, seed=0, options={"max_new_tokens": 6})
    told = [observation[-1] for observation, *_ in steps]
    np.testing.assert_allclose(told, np.arange(7) / 9, atol=1e-6)
    assert steps[0][0].shape == (SIZE + 1,)


@pytest.mark.parametrize("mode", MODES)
def test_every_row_shows_its_own_text_in_every_mode(tiny, language_model, mode):
    envs = vector.LanguageModelFeatures(make_envs(tiny, mode), language_model, top_k=2)
    tokens = make_envs(tiny, mode)
    observations, _ = envs.reset(seed=5)
    plain, _ = tokens.reset(seed=5)
    assert observations in envs.observation_space
    finals = 0
    for actions in scripted(300, 25, early_end=EOS):
        observations, _, ended, _, infos = envs.step(actions)
        plain, *_, plain_infos = tokens.step(actions)
        for row in range(N):
            text = plain["input_ids"][row][plain["attention_mask"][row] == 1].tolist()
            expected = expected_hidden(language_model, text)
            np.testing.assert_allclose(observations[row][:SIZE], expected, atol=1e-5)
        if mode is AutoresetMode.SAME_STEP and ended.any():
            for row in np.flatnonzero(ended):
                final = plain_infos["final_obs"][row]
                text = final["input_ids"][final["attention_mask"] == 1].tolist()
                ours = infos["final_obs"][row]
                expected = expected_hidden(language_model, text)
                np.testing.assert_allclose(ours[:SIZE], expected, atol=1e-5)
                assert ours in envs.single_observation_space
                finals += 1
            assert all(infos["final_obs"][row] is None for row in np.flatnonzero(~ended))
        if mode is AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
            tokens.reset(options={"reset_mask": ended})
    assert finals > 5 or mode is not AutoresetMode.SAME_STEP


def test_each_token_goes_through_the_model_once(tiny, language_model):
    envs = vector.LanguageModelFeatures(make_envs(tiny, AutoresetMode.DISABLED), language_model)
    with count_tokens(language_model) as sizes:
        envs.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 5})
        prompt = len(texts(envs)[0])
        for _ in range(8):  # Rows that wait cost nothing.
            envs.step(np.full(N, 40))
    assert sizes == [N * prompt, *[N] * 5]


def test_observations_are_not_reused(tiny, language_model):
    envs = vector.LanguageModelFeatures(make_envs(tiny), language_model)
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    envs.step(np.full(N, 40))
    np.testing.assert_array_equal(first, kept)


def test_changed_observations_and_features_of_features_are_refused(tiny, language_model):
    env = gym.wrappers.FlattenObservation(make_env(tiny))
    with pytest.raises(InvalidArgumentError, match="no longer the tokens"):
        LanguageModelFeatures(env, language_model)
    env = LanguageModelFeatures(make_env(tiny), language_model)
    with pytest.raises(InvalidArgumentError, match="LanguageModelFeatures already"):
        LanguageModelFeatures(env, language_model)
    envs = vector.LanguageModelFeatures(make_envs(tiny), language_model)
    with pytest.raises(InvalidArgumentError, match="LanguageModelFeatures already"):
        vector.LanguageModelFeatures(envs, language_model)


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, 10_000])
def test_a_bad_number_of_candidates_is_refused(tiny, language_model, top_k):
    with pytest.raises(InvalidArgumentError, match="top_k"):
        LanguageModelFeatures(make_env(tiny), language_model, top_k=top_k)


def test_a_model_of_another_tokenizer_is_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="its tokenizer differs"):
        LanguageModelFeatures(make_env(tiny))  # the embedded one
    with pytest.raises(InvalidArgumentError, match='"planted" for the planted task'):
        LanguageModelFeatures(gym.make("ABC-RLHF-Planted-v0"))
    LanguageModelFeatures(gym.make("ABC-RLHF-Planted-v0"), "planted").reset(seed=0)


def test_a_model_that_is_too_small_is_refused(tiny, language_model):
    config = copy.deepcopy(language_model.config)
    config.max_position_embeddings = 12
    with pytest.raises(InvalidArgumentError, match="it takes 12"):
        LanguageModelFeatures(make_env(tiny), type(language_model)(config))
    config.vocab_size, config.max_position_embeddings = 100, 64
    with pytest.raises(InvalidArgumentError, match="it knows 100 tokens"):
        LanguageModelFeatures(make_env(tiny), type(language_model)(config))
