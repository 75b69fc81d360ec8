"""Masks of legal actions, of whatever the actions stand for."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.wrappers.helpers import EOS, MODES, N, make_env, make_envs, num_new_tokens, scripted
from textgym.errors import InvalidArgumentError
from textgym.wrappers import ActionMask, AttentionShaping, TopKActions, vector


def test_only_an_early_end_is_masked(tiny):
    env = ActionMask(make_env(tiny, min_new_tokens=3))
    _, info = env.reset(seed=0, options={"max_new_tokens": 9})
    for step in range(6):
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert mask.shape == (env.action_space.n,)
        assert mask[EOS] == (step >= 3)
        assert np.delete(mask, EOS).all()
        np.testing.assert_array_equal(env.action_masks(), mask.astype(bool))
        *_, info = env.step(40)


def test_the_mask_fits_the_action_space_to_sample_from(tiny):
    env = ActionMask(make_env(tiny))
    _, info = env.reset(seed=0)
    info["action_mask"][40:] = 0
    assert all(env.action_space.sample(info["action_mask"]) < 40 for _ in range(20))


def test_other_wrappers_above_and_below_do_not_matter(tiny):
    env = AttentionShaping(ActionMask(gym.wrappers.TimeLimit(make_env(tiny), 5)))
    env.reset(seed=0)
    masks = env.get_wrapper_attr("action_masks")()
    assert masks.dtype == np.bool_
    assert not masks[EOS]


def test_all_candidates_are_legal(tiny, language_model):
    env = ActionMask(TopKActions(make_env(tiny), 5, language_model))
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == env.action_masks().tolist() == [1] * 5
    envs = vector.ActionMask(vector.TopKActions(make_envs(tiny), 5, language_model))
    _, infos = envs.reset(seed=0)
    assert infos["action_mask"].tolist() == envs.action_masks().tolist() == [[1] * 5] * N


@pytest.mark.parametrize("mode", MODES)
def test_masks_speak_about_the_state_that_comes_next(tiny, mode):
    envs = vector.ActionMask(make_envs(tiny, mode, min_new_tokens=4))
    envs.reset(seed=1)
    base = envs.unwrapped
    for actions in scripted(300, 25):
        waiting = base.ended
        _, _, ended, _, infos = envs.step(actions)
        spoken = ~waiting if mode is AutoresetMode.DISABLED else np.ones(N, dtype=bool)
        np.testing.assert_array_equal(infos["_action_mask"], spoken)
        for row in np.flatnonzero(spoken):
            assert infos["action_mask"][row, EOS] == (num_new_tokens(base)[row] >= 4)
            assert np.delete(infos["action_mask"][row], EOS).all()
        if mode is AutoresetMode.DISABLED and ended.any():
            _, infos = envs.reset(options={"reset_mask": ended})
            np.testing.assert_array_equal(infos["_action_mask"], ended)


def test_actions_that_are_neither_tokens_nor_candidates_are_refused(tiny):
    env = gym.wrappers.TransformAction(make_env(tiny), lambda a: a + 1, gym.spaces.Discrete(7))
    with pytest.raises(InvalidArgumentError, match="neither tokens nor candidates"):
        ActionMask(env)
