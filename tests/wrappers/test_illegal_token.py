"""The observation's word on which token is illegal."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.wrappers.helpers import EOS, MODES, N, make_env, make_envs, num_new_tokens, scripted
from textgym.errors import InvalidArgumentError
from textgym.wrappers import IllegalToken, LanguageModelFeatures, vector


def test_eos_is_illegal_until_there_are_enough_tokens(tiny):
    env = IllegalToken(make_env(tiny, min_new_tokens=3))
    observation, _ = env.reset(seed=0, options={"max_new_tokens": 9})
    for step in range(6):
        assert observation in env.observation_space
        assert observation["illegal_token"].tolist() == [EOS if step < 3 else -1]
        observation, *_ = env.step(40)


def test_the_rest_of_the_observation_and_the_actions_stay(tiny):
    env, plain = IllegalToken(make_env(tiny)), make_env(tiny)
    assert env.action_space == plain.action_space
    observation, expected = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    assert set(observation) == {*expected, "illegal_token"}
    for key, value in expected.items():
        np.testing.assert_array_equal(observation[key], value)


@pytest.mark.parametrize("mode", MODES)
def test_rows_speak_about_their_own_states(tiny, mode):
    envs = vector.IllegalToken(make_envs(tiny, mode, min_new_tokens=4))
    envs.reset(seed=1)
    finals = 0
    for actions in scripted(300, 25, early_end=EOS):
        observations, _, ended, _, infos = envs.step(actions)
        assert observations in envs.observation_space
        expected = np.where(num_new_tokens(envs) < 4, EOS, -1)
        np.testing.assert_array_equal(observations["illegal_token"], expected[:, None])
        if "final_obs" in infos:
            lengths = envs.unwrapped.last_step.scored.completion_mask.sum(1).tolist()
            for row, length in zip(np.flatnonzero(ended), lengths, strict=True):
                final = infos["final_obs"][row]
                assert final in envs.single_observation_space
                assert final["illegal_token"].tolist() == [EOS if length < 4 else -1]
                finals += 1
        if mode is AutoresetMode.DISABLED and ended.any():
            observations, _ = envs.reset(options={"reset_mask": ended})
            assert (observations["illegal_token"][ended] == EOS).all()
    assert (finals > N) == (mode is AutoresetMode.SAME_STEP)


@pytest.mark.filterwarnings("ignore:(?s).*different from the unwrapped version")
@pytest.mark.filterwarnings("error")
def test_it_passes_the_checkers(tiny):
    check_env(IllegalToken(make_env(tiny)), skip_render_check=True)
    sb3_check_env(IllegalToken(make_env(tiny)))


def test_observations_without_keys_are_refused(tiny, language_model):
    with pytest.raises(InvalidArgumentError, match="not a Dict"):
        IllegalToken(LanguageModelFeatures(make_env(tiny), language_model))


def test_a_second_one_is_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="already"):
        IllegalToken(gym.wrappers.TimeLimit(IllegalToken(make_env(tiny)), 5))
    with pytest.raises(InvalidArgumentError, match="already"):
        vector.IllegalToken(vector.IllegalToken(make_envs(tiny)))
