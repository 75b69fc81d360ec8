"""The checkers of Gymnasium and Stable-Baselines3 find nothing, alone and during training."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import PassiveEnvChecker
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from textgym.registration import ENVIRONMENTS

IDS = list(ENVIRONMENTS)
FEATURES = "ABC-RLHF-Features-v0"


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """All but two about the features environment, which is made of wrappers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*different from the unwrapped version")
        # Features have no bounds, as in Gymnasium's own environments.
        warnings.filterwarnings("ignore", "(?s).*Box observation space m.*imum value")
        yield


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_finds_nothing(env_id):
    env = gym.make(env_id)
    check_env(env if "Features" in env_id else env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_the_checker_of_stable_baselines3_finds_nothing(env_id):
    sb3_check_env(gym.make(env_id))


@pytest.mark.parametrize("env_id", [FEATURES, "ABC-RLHF-Planted-v0"])
def test_every_step_of_a_training_is_checked(env_id):
    """Gymnasium checks only the first step of an environment, here it checks each of them."""
    env = gym.make(env_id, disable_env_checker=True)
    checked = EveryStep(env)
    policy = "MlpPolicy" if "Features" in env_id else "MultiInputPolicy"
    PPO(policy, checked, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    assert checked.num_checked == 64


class EveryStep(PassiveEnvChecker):
    """Gymnasium's passive checker, which looks at every step instead of the first."""

    num_checked = 0

    def step(self, action):
        self.checked_step = False
        self.num_checked += 1
        return super().step(action)

    def reset(self, **arguments):
        self.checked_reset = False
        return super().reset(**arguments)


@pytest.mark.parametrize("mode", gym.vector.AutoresetMode)
@pytest.mark.parametrize("env_id", IDS)
def test_batches_keep_to_their_spaces(env_id, mode):
    """Shapes, dtypes and bounds of what a batch returns, over the ends of episodes."""
    arguments = {} if env_id == "ABC-RLHF-Planted-v0" else {"min_new_tokens": 3}
    envs = gym.make_vec(env_id, 3, autoreset_mode=mode, max_new_tokens=8, **arguments)
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)
    for _ in range(20):
        assert observations in envs.observation_space
        observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        assert isinstance(infos, dict)
        assert rewards.dtype == np.float64
        assert terminated.dtype == truncated.dtype == np.bool_
        assert rewards.shape == terminated.shape == truncated.shape == (3,)
        for final in infos.get("final_obs", []):
            assert final is None or final in envs.single_observation_space
        if mode is gym.vector.AutoresetMode.DISABLED and terminated.any():
            observations, infos = envs.reset(options={"reset_mask": terminated})
