"""Stacks of wrappers: single and vector forms agree, and the registered ids."""

from __future__ import annotations

import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from tests.wrappers.helpers import N, is_close, make_env, make_envs, scripted
from textgym import wrappers
from textgym.errors import InvalidArgumentError
from textgym.models import Completions
from textgym.registration import ENVIRONMENTS
from textgym.wrappers import AttentionShaping, CreditAssignment, vector

K = 7

# Any order of those that change what an agent sees, does and is paid; the mask goes with actions.
ORDERS = {
    "features inside": ["features", "candidates", "shaping", "reference", "mask"],
    "features outside": ["reference", "candidates", "mask", "shaping", "features"],
    "shaping inside": ["shaping", "candidates", "features", "reference", "mask"],
}


def stack(env, order, forms, model):
    wrap = {
        "features": lambda env: forms.LanguageModelFeatures(env, model, top_k=2, progress=True),
        "candidates": lambda env: forms.TopKActions(env, K, model),
        "shaping": lambda env: forms.AttentionShaping(env, 0.5, gamma=0.9),
        "reference": lambda env: forms.ReferenceLogProb(env, 0.1, model),
        "mask": lambda env: forms.ActionMask(env),
    }
    for name in order:
        env = wrap[name](env)
    return env


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_vector_forms_agree_with_gymnasiums_own_vectorisation(tiny, language_model, mode, order):
    """Observations, rewards, ends and infos, over ragged episodes."""
    ours = stack(make_envs(tiny, mode), order, vector, language_model)
    theirs = SyncVectorEnv(
        [lambda: stack(make_env(tiny), order, wrappers, language_model)] * N, autoreset_mode=mode
    )
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    for mine, other in zip(ours.reset(seed=7), theirs.reset(seed=7), strict=True):
        is_close(mine, other)
    ended = 0
    for actions in scripted(K, 22):
        mine, other = ours.step(actions), theirs.step(actions)
        for ourselves, them in zip(mine[:4], other[:4], strict=True):
            is_close(ourselves, them)
        ended += int(mine[2].sum())
        _compare_infos(mine[4], other[4], mode)
    assert ended > 5


def _compare_infos(mine, other, mode):
    if mode is AutoresetMode.NEXT_STEP:
        is_close(mine, other)
        return
    # The step's own terms stand beside its rewards in our form, and, as in Gymnasium's, in the
    # final infos; the mask of a state that no action follows is not told.
    if "final_info" in other:
        final = {
            key: value for key, value in other["final_info"].items() if "action_mask" not in key
        }
        is_close(mine["final_info"], final)
        is_close(mine["final_obs"], other["final_obs"])
    is_close(mine["action_mask"], other["action_mask"])
    for key in set(other) - {"final_info", "final_obs", "_final_info", "_final_obs"}:
        if not key.startswith("_"):
            rows = other[f"_{key}"]
            np.testing.assert_allclose(mine[key][rows], other[key][rows], atol=1e-4)


def test_disabled_mode_agrees_with_single_environments_one_by_one(tiny, language_model):
    order = ORDERS["features inside"]
    envs = stack(make_envs(tiny, AutoresetMode.DISABLED), order, vector, language_model)
    seeds = [11, 5, 8, 2]
    observations, _ = envs.reset(seed=seeds)
    script = scripted(K, 10, seed=4)
    rewards = []
    for actions in script:
        observations, reward, terminated, _, _ = envs.step(actions)
        rewards.append(reward)
    assert terminated.all()
    for row, seed in enumerate(seeds):
        single = stack(make_env(tiny), order, wrappers, language_model)
        single.reset(seed=seed)
        for step, actions in enumerate(script):
            observation, reward, done, _, _ = single.step(actions[row])
            assert rewards[step][row] == pytest.approx(reward, abs=1e-4)
            if done:
                break
        assert not np.array(rewards)[step + 1 :, row].any()
        np.testing.assert_allclose(observations[row], observation, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_stacks_pass_the_checkers(tiny, language_model, order):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*different from the unwrapped version")
        # As in Gymnasium's own environments with features of unknown size.
        warnings.filterwarnings("ignore", "(?s).*(-infinity|infinity)")
        env = stack(make_env(tiny), order, wrappers, language_model)
        check_env(env, skip_render_check=True)
        sb3_check_env(env)


def test_every_registered_id_is_made_and_played():
    for env_id in ENVIRONMENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(gym.make(env_id).unwrapped, skip_render_check=True)
        for mode in ("sync", "vector_entry_point"):
            envs = gym.make_vec(env_id, num_envs=2, vectorization_mode=mode)
            observations, _ = envs.reset(seed=0)
            assert observations in envs.observation_space
            envs.step(envs.action_space.sample())


def test_the_features_environment_is_made_by_its_id_alone():
    env = gym.make("textgym:ABC-RLHF-Features-v0")
    assert env.observation_space.shape == (256 + 4 + 4 * 256 + 1,)
    assert env.action_space == gym.spaces.Discrete(4)
    assert (env.unwrapped.min_new_tokens, env.unwrapped.max_new_tokens) == (16, 16)
    env = gym.make("ABC-RLHF-Features-v0", k=3, max_new_tokens=5, prompts=["This film"])
    assert env.observation_space.shape == (256 + 3 + 3 * 256 + 1,)
    assert env.action_space == gym.spaces.Discrete(3)
    observation, info = env.reset(seed=0)
    assert info["token_budget"] == 5
    lengths, terminated = 0, False
    while not terminated:
        observation, _, terminated, _, info = env.step(env.action_space.sample())
        lengths += 1
        assert observation[-1] == pytest.approx(lengths / 5)
    assert lengths == 5
    assert info["prompt"] == "This film"


def test_the_features_environment_may_leave_its_actions_undescribed():
    env = gym.make("ABC-RLHF-Features-v0", k=16, describe_actions=False)
    assert env.observation_space.shape == (256 + 1,)
    assert env.action_space == gym.spaces.Discrete(16)


@pytest.mark.parametrize("flag", ["describe_actions", "dense"])
def test_flags_of_the_features_environment_are_checked(flag):
    for make in (gym.make, partial(gym.make_vec, num_envs=2)):
        with pytest.raises(InvalidArgumentError, match=flag):
            make("ABC-RLHF-Features-v0", **{flag: "no"})


def test_the_dense_features_environment_pays_the_score_in_small_change():
    arguments = {"max_new_tokens": 5, "prompts": ["This film"]}
    sparse = gym.make("ABC-RLHF-Features-v0", **arguments)
    dense = gym.make("ABC-RLHF-Features-Dense-v0", **arguments)
    envs = gym.make_vec("ABC-RLHF-Features-Dense-v0", num_envs=2, **arguments)
    scored = sparse.unwrapped.reward_model
    played = []
    for env in (sparse, dense, envs):
        env.reset(seed=0)
        action = 1 if env is not envs else np.ones(2, dtype=np.int64)
        played.append([env.step(action) for _ in range(5)])
    paid, changes = ([reward for _, reward, *_ in steps] for steps in played[:2])
    info, prompt = played[1][-1][-1], encode_prompt(sparse)
    assert paid == pytest.approx([0.0] * 4 + [info["score"]], abs=1e-4)
    start = scored.read(Completions.from_lists([prompt[:1]], [prompt[1:]]), []).score.item()
    assert sum(changes) == pytest.approx(info["score"] - start, abs=1e-4)
    assert np.count_nonzero(changes) == 5
    for change, (_, rewards, *_) in zip(changes, played[2], strict=True):
        np.testing.assert_allclose(rewards, change, atol=1e-4)


def encode_prompt(env):
    return env.unwrapped.tokenizer("This film")["input_ids"]


def test_the_features_environment_can_be_made_from_its_spec():
    env = gym.make("ABC-RLHF-Features-v0", k=4, max_new_tokens=5)
    again = gym.make(env.spec)
    assert str(again) == str(env)
    assert data_equivalence(env.reset(seed=0), again.reset(seed=0))


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_batches_of_the_features_environment_agree(mode):
    envs = gym.make_vec("ABC-RLHF-Features-v0", num_envs=2, vectorization_mode=mode, k=4)
    env = gym.make("ABC-RLHF-Features-v0", k=4)
    observations, _ = envs.reset(seed=3)
    np.testing.assert_allclose(observations[1], env.reset(seed=4)[0], atol=1e-4)
    for action in (0, 1, 2, 3):
        observations, *_, infos = envs.step(np.full(2, action))
        observation, *_, info = env.step(action)
        np.testing.assert_allclose(observations[1], observation, atol=1e-4)
        assert infos["token"][1] == info["token"]


def test_long_episodes_have_128_tokens():
    envs = gym.make_vec("ABC-RLHF-Long-v0", num_envs=2)
    _, infos = envs.reset(seed=0)
    assert infos["token_budget"].tolist() == [128, 128]
    for step in range(128):
        _, _, terminated, _, infos = envs.step(np.full(2, 40))
        assert terminated.all() == (step == 127)
    assert infos["completion_tokens"].tolist() == [128, 128]


@pytest.mark.parametrize("wrap", [CreditAssignment, AttentionShaping])
def test_wrapped_environments_pass_the_checker(tiny, wrap):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "(?s).*different from the unwrapped version")
        check_env(wrap(make_env(tiny)), skip_render_check=True)


def test_the_wrong_form_of_a_wrapper_is_refused(tiny):
    envs = make_envs(tiny)
    with pytest.raises(InvalidArgumentError, match=r"textgym\.wrappers\.vector"):
        AttentionShaping(envs)
    with pytest.raises(InvalidArgumentError, match="TextGenerationVectorEnv"):
        vector.CreditAssignment(gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(InvalidArgumentError, match="TextGenerationEnv"):
        CreditAssignment(gym.make("CartPole-v1"))


def test_a_reset_of_some_rows_leaves_the_others_alone_whatever_is_inside(tiny):
    """Gymnasium's RecordEpisodeStatistics takes the mask out of the options that it is given."""

    def length(prompt, completion):
        return float(len(completion))

    envs = RecordEpisodeStatistics(make_envs(tiny, AutoresetMode.DISABLED, num_envs=2))
    envs = vector.CreditAssignment(vector.PotentialShaping(envs, length), "uniform")
    envs = vector.ActionMask(envs)
    budget = {"max_new_tokens": 3}
    envs.reset(seed=0, options=budget)
    paid = envs.step([40, 40])[1][1]
    _, infos = envs.reset(options={"reset_mask": np.array([True, False]), **budget})
    assert infos["_action_mask"].tolist() == [True, False]
    for _ in range(2):
        _, rewards, _, _, infos = envs.step([40, 40])
        paid += rewards[1]
    assert infos["_credit"].tolist() == [False, True]
    assert paid == pytest.approx(infos["score"][1])  # at γ = 1 the terms of an episode cancel
    assert infos["shaped_return"][1] == pytest.approx(paid)
    assert infos["credit"][1].sum() == pytest.approx(paid, abs=1e-5)
