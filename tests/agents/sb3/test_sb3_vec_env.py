from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from textgym.agents.sb3 import TextVecEnv
from textgym.errors import InvalidArgumentError
from textgym.wrappers import ActionMask as SingleActionMask
from textgym.wrappers import AttentionShaping, CreditAssignment
from textgym.wrappers.vector import ActionMask
from textgym.wrappers.vector import AttentionShaping as VectorAttentionShaping
from textgym.wrappers.vector import CreditAssignment as VectorCreditAssignment


def assert_equal(ours, theirs, path=""):
    """Equal in structure, and in numbers up to what a batched forward rounds otherwise."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), path
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), path
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{path}/{number}")
    elif isinstance(theirs, (np.ndarray, float)):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype, path
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=path)
    else:
        assert ours == theirs, path
        assert type(ours) is type(theirs), path


def assert_runs_as(ours, theirs, choose, num_steps, seed=7):
    for _ in range(2):  # the second reset has no seed
        for env in (ours, theirs):
            env.seed(seed) if seed is not None else None
        assert_equal(ours.reset(), theirs.reset())
        assert_equal(ours.reset_infos, theirs.reset_infos)
        num_done = 0
        for _ in range(num_steps):
            actions = choose()
            step = ours.step(actions)
            assert_equal(step, theirs.step(actions))
            assert_equal(ours.reset_infos, theirs.reset_infos)
            num_done += step[2].sum()
        assert num_done > 3
        seed = None


@pytest.mark.parametrize("wrapper", ["none", "credit", "shaping", "both"])
def test_equals_single_environments_step_by_step(tiny, wrapper):
    arguments = {**tiny, "action_mask_in_info": True}
    single, vector = {
        "none": ([], []),
        "credit": ([CreditAssignment], [VectorCreditAssignment]),
        "shaping": ([AttentionShaping], [VectorAttentionShaping]),
        "both": (
            [AttentionShaping, CreditAssignment],
            [VectorAttentionShaping, VectorCreditAssignment],
        ),
    }[wrapper]

    def make_one():
        env = gym.make("ABC-RLHF-v0", **arguments)
        for wrap in single:
            env = wrap(env)
        return env

    envs = gym.make_vec("ABC-RLHF-v0", 3, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    for wrap in vector:
        envs = wrap(envs)
    rng = np.random.default_rng(0)
    eos = envs.unwrapped.tokenizer.eos_token_id

    def choose():
        tokens = rng.integers(3, envs.single_action_space.n, 3)
        tokens[rng.random(3) < 0.2] = eos
        return tokens

    assert_runs_as(TextVecEnv(envs), DummyVecEnv([make_one] * 3), choose, num_steps=20)


def test_equals_single_environments_that_show_features(tiny, language_model):
    env_id, arguments = "ABC-RLHF-Features-v0", {**tiny, "model": language_model, "k": 4}
    envs = gym.make_vec(env_id, 3, autoreset_mode=AutoresetMode.DISABLED, **arguments)
    ours = TextVecEnv(ActionMask(VectorCreditAssignment(envs)))
    theirs = DummyVecEnv(
        [lambda: SingleActionMask(CreditAssignment(gym.make(env_id, **arguments)))] * 3
    )
    rng = np.random.default_rng(2)
    assert_runs_as(ours, theirs, lambda: rng.integers(0, 4, 3), num_steps=25)
    np.testing.assert_array_equal(get_action_masks(ours), get_action_masks(theirs))


def test_equals_single_environments_where_a_limit_truncates():
    arguments = {"id": "CartPole-v1", "max_episode_steps": 15}
    envs = gym.make_vec(
        **arguments, num_envs=4, vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
    )  # fmt: skip
    theirs = DummyVecEnv([lambda: gym.make(**arguments)] * 4)
    rng = np.random.default_rng(1)
    ours = TextVecEnv(envs)
    assert_runs_as(ours, theirs, lambda: rng.integers(0, 2, 4), num_steps=60)


def test_the_step_that_ends_an_episode_tells_of_its_end(make_text_vec_env):
    env = make_text_vec_env(2, min_new_tokens=3, max_new_tokens=3)
    env.seed(0)
    start = env.reset()
    lengths = start["attention_mask"].sum(axis=1)
    for token in (5, 6, 7):
        observations, rewards, dones, infos = env.step(np.array([token, token + 1]))
    assert dones.all()
    assert rewards.dtype == np.float32
    for row, info in enumerate(infos):
        last = info["terminal_observation"]
        tokens = last["input_ids"][last["attention_mask"].astype(bool)]
        assert tokens[-3:].tolist() == [5 + row, 6 + row, 7 + row]
        assert last["attention_mask"].sum() == lengths[row] + 3
        assert info["TimeLimit.truncated"] is False
        assert info["credit"].sum() == pytest.approx(rewards[row], abs=1e-5)
        assert "token_budget" not in info
        assert env.reset_infos[row]["token_budget"] == 3
    assert (observations["attention_mask"].sum(axis=1) <= 9).all()


def test_one_call_of_the_reward_model_scores_all_that_end(make_text_vec_env, monkeypatch):
    env = make_text_vec_env(5, min_new_tokens=2, max_new_tokens=2)
    task, batches = env.env.unwrapped.task, []
    score = task.score
    monkeypatch.setattr(
        task, "score", lambda prompts, *rest: batches.append(len(prompts)) or score(prompts, *rest)
    )
    env.reset()
    for _ in range(4):
        env.step(np.full(5, 9))
    assert batches == [5, 5]


def test_options_hold_for_one_reset_of_all_rows(make_text_vec_env):
    env = make_text_vec_env(2)
    env.set_options({"prompt": "I"})
    first = env.reset()
    assert (first["attention_mask"].sum(axis=1) == 2).all()
    env.seed(1)
    assert (env.reset()["attention_mask"].sum(axis=1) != 2).any()
    with pytest.raises(InvalidArgumentError, match="one dict"):
        env.set_options([{"prompt": "I"}, {"prompt": "This film"}])


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_other_autoreset_modes_are_refused(tiny, mode):
    envs = gym.make_vec("ABC-RLHF-v0", 2, autoreset_mode=mode, **tiny)
    with pytest.raises(InvalidArgumentError, match="DISABLED"):
        TextVecEnv(envs)


def test_single_environments_are_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="make_vec"):
        TextVecEnv(gym.make("ABC-RLHF-v0", **tiny))


def test_attributes_are_found_below_wrappers(make_text_vec_env):
    env = make_text_vec_env(3)
    assert env.get_attr("max_new_tokens") == [9, 9, 9]
    assert env.get_attr("max_new_tokens", indices=1) == [9]
    assert env.get_attr("render_mode") == [None] * 3
    assert not env.has_attr("no_such_thing")
    env.set_attr("action_mask_in_info", True)
    assert env.env.unwrapped.action_mask_in_info is True
    env.set_attr("remark", "new")
    assert env.env.remark == "new"
    with pytest.raises(InvalidArgumentError, match="share"):
        env.set_attr("remark", "other", indices=[0])


def test_methods_answer_for_each_row_asked_for(make_text_envs):
    plain = TextVecEnv(make_text_envs(3))
    assert not is_masking_supported(plain)
    env = TextVecEnv(ActionMask(make_text_envs(3)))
    env.reset()
    assert is_masking_supported(env)
    masks = get_action_masks(env)
    assert masks.shape == (3, env.action_space.n)
    eos = env.env.unwrapped.tokenizer.eos_token_id
    assert masks.sum() == masks.size - 3
    assert (masks[:, eos] == 0).all()
    (one,) = env.env_method("action_masks", indices=2)
    np.testing.assert_array_equal(one, masks[2])
    assert env.env_method("request_readouts", ()) == [None] * 3


def test_vector_wrappers_are_seen(make_text_vec_env):
    env = make_text_vec_env(2)
    assert env.env_is_wrapped(VectorCreditAssignment) == [True, True]
    assert env.env_is_wrapped(VectorAttentionShaping, indices=0) == [False]


def test_monitored_evaluation_reports_the_scores(make_text_vec_env):
    env = VecMonitor(make_text_vec_env(2))
    agent = A2C("MultiInputPolicy", env, device="cpu", seed=0)
    scores = []
    returns, lengths = evaluate_policy(
        agent, env, n_eval_episodes=6, return_episode_rewards=True,
        callback=lambda local, _: local["done"] and scores.append(local["info"]["score"]),
    )  # fmt: skip
    np.testing.assert_allclose(returns, scores, rtol=1e-5)
    assert all(1 <= length <= 9 for length in lengths)


def test_rewards_can_be_normalised(make_text_vec_env):
    env = VecNormalize(make_text_vec_env(2), norm_obs=False, clip_reward=1.0)
    agent = A2C("MultiInputPolicy", env, device="cpu", seed=0, n_steps=10)
    agent.learn(60)
    assert np.abs(agent.rollout_buffer.rewards).max() <= 1.0


def test_statistics_of_an_episode_reach_its_row(make_text_envs):
    """SB3 reads the return of an episode from ``info["episode"]["r"]``."""
    env = TextVecEnv(RecordEpisodeStatistics(make_text_envs()))
    env.reset()
    is_done = np.zeros(env.num_envs, dtype=np.bool_)
    while not is_done.any():
        _, rewards, is_done, infos = env.step(np.full(env.num_envs, 40))
    for reward, done, info in zip(rewards, is_done, infos, strict=True):
        assert ("episode" in info) == done
        assert not done or info["episode"]["r"] == pytest.approx(reward, abs=1e-6)
