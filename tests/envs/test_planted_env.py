"""The planted task's environments: the program pays, the reward model is read."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import textgym  # noqa: F401
from textgym.envs import PlantedEnv, PlantedVectorEnv
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, PrefixScores, load_language_model, load_reward_model
from textgym.models.build.planted_models import evaluate_planted_reward_model, make_tokenizer
from textgym.planted import (
    EOS_ID,
    PROMPTS,
    START_ID,
    TOKEN_IDS,
    VOCABULARY,
    contributions,
    encode,
    optimal_completion,
    optimal_score,
    score,
)
from textgym.wrappers import AttentionShaping, CreditAssignment
from textgym.wrappers import vector as vector_wrappers

N = 4


def make(**changes):
    return gym.make("ABC-RLHF-Planted-v0", **changes)


def make_vec(mode=AutoresetMode.NEXT_STEP, **changes):
    return gym.make_vec("ABC-RLHF-Planted-v0", num_envs=N, autoreset_mode=mode, **changes)


def words(text):
    """Token ids of some words, without the start token."""
    return encode(text)[1:]


def run_episode(env, actions, **reset):
    env.reset(**reset)
    rewards = []
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
        if terminated:
            break
    assert terminated
    return rewards, info


@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_the_checker_passes_without_a_warning(render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode=render_mode).unwrapped)


def test_both_entry_points_lead_to_the_planted_environments():
    assert isinstance(make().unwrapped, PlantedEnv)
    envs = make_vec()
    assert isinstance(envs.unwrapped, PlantedVectorEnv)
    assert envs.single_action_space.n == len(VOCABULARY)


def test_two_seeded_copies_agree_exactly():
    first, second = make(), make()
    for seed in (3, None, None):
        assert data_equivalence(first.reset(seed=seed), second.reset(seed=seed), exact=True)
        terminated = False
        while not terminated:
            action = first.action_space.sample()
            steps = first.step(action), second.step(action)
            assert data_equivalence(*steps, exact=True)
            terminated = steps[0][2]


def test_all_prompts_are_drawn_and_the_budget_is_eight():
    env = make()
    starts = [env.reset(seed=seed) for seed in range(60)]
    assert {info["token_budget"] for _, info in starts} == {8}
    drawn = {tuple(obs["input_ids"][obs["attention_mask"] == 1].tolist()) for obs, _ in starts}
    assert drawn == {tuple(encode(prompt)) for prompt in PROMPTS}


def test_the_end_pays_the_programs_score_and_tells_the_truth():
    actions = words("not very bad however good not wonderful film")
    rewards, info = run_episode(make(), actions, seed=0, options={"prompt": "the film was"})
    assert rewards == [0, 0, 0, 0, 0, 0, 0, -1.0]
    assert info["score"] == -1.0
    assert info["contributions"].tolist() == [4, -1, -1, -2, 1, -4, 2, 0]
    assert info["contributions"].dtype == np.float32
    assert info["optimal_score"] == 10.0
    assert info["completion"] == " not very bad however good not wonderful film"


@pytest.mark.parametrize("seed", range(5))
def test_reward_and_contributions_are_the_programs(seed):
    env = make()
    actions = np.random.default_rng(seed).integers(3, len(VOCABULARY), 8)
    rewards, info = run_episode(env, actions, seed=seed)
    ids = [*encode(info["prompt"]), *actions]
    assert sum(rewards) == score(ids) == info["contributions"].sum()
    np.testing.assert_array_equal(info["contributions"], contributions(ids)[-8:])


def test_the_optimal_completion_earns_the_optimal_score():
    env = make(min_new_tokens=10, max_new_tokens=10)
    rewards, info = run_episode(env, optimal_completion(encode("it was"), 10), seed=0)
    assert sum(rewards) == info["optimal_score"] == 12.0


def test_the_optimum_is_that_of_the_episodes_own_budget():
    options = {"prompt": "it was", "max_new_tokens": 3}
    _, info = run_episode(make(), words("good good good"), seed=0, options=options)
    assert info["optimal_score"] == optimal_score(encode("it was"), 3) == 5.0


def test_an_early_end_leaves_zeros_behind_it():
    _, info = run_episode(make(), [*words("very good"), EOS_ID], seed=0)
    assert info["contributions"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_a_prompts_own_share_is_the_difference_between_score_and_contributions():
    options = {"prompt": "it was good", "max_new_tokens": 2}
    _, info = run_episode(make(), words("very bad"), seed=0, options=options)
    assert info["score"] == -1.0
    assert info["contributions"].sum() == -2.0


def test_read_outs_come_from_the_reward_model_and_its_score_is_told():
    env = make()
    env.unwrapped.request_readouts([PrefixScores(), AttentionRow()])
    _, info = run_episode(env, words("very good not bad so wonderful it was"), seed=0)
    scored = env.unwrapped.last_step.scored
    assert scored.score.tolist() == [5.0]
    predicted = scored[PrefixScores()][0, -1].item()
    assert info["reward_model_score"] == pytest.approx(predicted, abs=1e-5)
    assert info["reward_model_score"] != 5.0
    assert scored[AttentionRow()].sum().item() == pytest.approx(1.0, abs=1e-5)
    chosen = scored.select(torch.tensor([0]))
    assert chosen.reward_model_score.tolist() == [info["reward_model_score"]]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_rows_agree_with_gymnasiums_own_vectorisation_of_the_single_one(mode):
    ours, theirs = make_vec(mode), SyncVectorEnv([make] * N, autoreset_mode=mode)
    np.testing.assert_array_equal(
        ours.reset(seed=7)[0]["input_ids"], theirs.reset(seed=7)[0]["input_ids"]
    )
    rng = np.random.default_rng(0)
    ended = 0
    for actions in rng.integers(EOS_ID, len(VOCABULARY), (30, N)):  # EOS now and then
        mine, other = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(mine[0]["input_ids"], other[0]["input_ids"])
        np.testing.assert_array_equal(mine[1], other[1])
        infos = [result[4].get("final_info", result[4]) for result in (mine, other)]
        assert set(infos[0]) == set(infos[1])
        for key in {"contributions", "optimal_score", "reward_model_score"} & set(infos[0]):
            assert infos[0][key].dtype == infos[1][key].dtype
            np.testing.assert_allclose(infos[0][key], infos[1][key], atol=1e-4)
            ended += 1
    assert ended > 10


def test_credit_and_shaping_sum_to_the_programs_score():
    actions = words("very good the not very awful film was")
    _, info = run_episode(CreditAssignment(make(), "abc"), actions, seed=0)
    assert info["credit"].sum() == pytest.approx(info["score"], abs=1e-4)
    rewards, info = run_episode(AttentionShaping(make()), actions, seed=0)
    assert sum(rewards) == pytest.approx(info["score"], abs=1e-4)
    assert np.count_nonzero(rewards) > 2


def test_batched_credit_sums_to_the_programs_score():
    envs = vector_wrappers.CreditAssignment(make_vec(AutoresetMode.DISABLED), "shaping")
    envs.reset(seed=0)
    for actions in np.random.default_rng(1).integers(3, len(VOCABULARY), (8, N)):
        *_, infos = envs.step(actions)
    np.testing.assert_allclose(infos["credit"].sum(axis=1), infos["score"], atol=1e-4)
    np.testing.assert_array_equal(infos["contributions"].sum(axis=1), infos["score"])


def test_the_reward_model_predicts_held_out_texts_and_the_optimum():
    model = load_reward_model("planted").model
    evaluation = evaluate_planted_reward_model(model, num_texts=300, seed=12345)
    assert set(evaluation) == {"words", "phrases", "clauses", "optimal"}
    for row in evaluation.values():
        assert row["mean_absolute_error"] < 0.05
        assert row["at_the_end"] < 0.1


def test_the_language_model_is_neither_good_nor_uniform():
    model = load_language_model("planted")
    with torch.no_grad():
        probabilities = model(torch.tensor([encode("the film")])).logits[0, -1].softmax(-1)
    assert probabilities[TOKEN_IDS["was"]] > 0.5
    assert probabilities.min() < 0.01


def test_shipped_tokenizers_are_the_programs_vocabulary():
    tokenizer = make_tokenizer()
    assert tokenizer.get_vocab() == make().unwrapped.tokenizer.get_vocab() == TOKEN_IDS
    assert tokenizer("the film was")["input_ids"] == encode("the film was")
    assert tokenizer.decode(encode("very good"), skip_special_tokens=True) == " very good"
    assert tokenizer("good")["input_ids"][0] == START_ID


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "embedded"}, "tokenizer|cannot encode"),
        ({"prompts": ["This film"]}, "cannot encode"),
        ({"max_new_tokens": 60}, "reward model takes 64"),
        ({"min_new_tokens": 9}, "min_new_tokens"),
        ({"reward_model": "embedded"}, "reward_model.*tokens"),
    ],
)
def test_bad_arguments_are_refused_at_construction(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PlantedEnv(**changes)


def test_a_prompt_of_other_words_is_refused_at_reset():
    with pytest.raises(InvalidArgumentError, match="cannot encode"):
        make().reset(options={"prompt": "the Film"})
