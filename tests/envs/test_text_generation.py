"""The single environment: the rules of the decision process."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import textgym
from tests.conftest import make_tokenizer
from textgym.errors import InvalidArgumentError
from textgym.models import Completions

EOS = 2


def make(tiny, **changes):
    return gym.make("ABC-RLHF-v0", **{**tiny, **changes})


def run_episode(env, actions=None, seed=None, options=None):
    """Steps until the end; returns rewards and the last step's observation and info."""
    env.reset(seed=seed, options=options)
    rng = np.random.default_rng(seed)
    rewards, terminated = [], False
    while not terminated:
        action = actions[len(rewards)] if actions is not None else rng.integers(3, 300)
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        assert not truncated
    return rewards, observation, info


@pytest.mark.parametrize("render_mode", [None, "ansi", "html", "human"])
def test_both_checkers_pass_without_a_warning(tiny, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(tiny, render_mode=render_mode)
        check_env(env.unwrapped)
        if render_mode is None:
            sb3_check_env(env)


def test_two_seeded_copies_agree_exactly(tiny):
    first, second = make(tiny), make(tiny)
    for seed in (5, None, None):
        assert data_equivalence(first.reset(seed=seed), second.reset(seed=seed), exact=True)
        terminated = False
        while not terminated:
            action = first.action_space.sample()
            steps = first.step(action), second.step(action)
            assert data_equivalence(*steps, exact=True)
            terminated = steps[0][2]


def test_seeds_change_prompts_and_budgets(tiny):
    env = make(tiny)
    starts = [env.reset(seed=seed) for seed in range(40)]
    assert {info["token_budget"] for _, info in starts} == set(range(2, 10))
    prompts = {tuple(obs["input_ids"][obs["attention_mask"] == 1]) for obs, _ in starts}
    assert len(prompts) == 4


def test_a_completed_budget_pays_the_reward_models_score_once(tiny, reward_model, tokenizer):
    env = make(tiny)
    actions = [40, 50, 60, 70, 80]
    options = {"prompt": "This film", "max_new_tokens": 5}
    rewards, observation, info = run_episode(env, actions, seed=0, options=options)
    batch = Completions.from_lists([tokenizer("This film")["input_ids"]], [actions])
    expected = reward_model.read(batch).score.item()
    assert rewards[:-1] == [0, 0, 0, 0]
    assert rewards[-1] == pytest.approx(expected, abs=1e-6)
    assert info["score"] == rewards[-1]
    assert info["prompt"] == "This film"
    assert info["completion"] == tokenizer.decode(actions)
    assert (info["prompt_tokens"], info["completion_tokens"]) == (
        len(tokenizer("This film")["input_ids"]),
        5,
    )
    real = observation["attention_mask"] == 1
    assert observation["input_ids"][real].tolist() == [
        *tokenizer("This film")["input_ids"],
        *actions,
    ]
    assert not observation["input_ids"][~real].any()


def test_the_end_token_ends_the_episode_and_is_scored(tiny, reward_model, tokenizer):
    env = make(tiny)
    options = {"prompt": "I", "max_new_tokens": 9}
    rewards, _, info = run_episode(env, [40, 50, 60, EOS], seed=0, options=options)
    batch = Completions.from_lists([tokenizer("I")["input_ids"]], [[40, 50, 60, EOS]])
    assert len(rewards) == info["completion_tokens"] == 4
    assert rewards[-1] == pytest.approx(reward_model.read(batch).score.item(), abs=1e-6)


def test_the_action_mask_forbids_only_an_early_end(tiny):
    env = make(tiny, action_mask_in_info=True, min_new_tokens=3)
    _, info = env.reset(seed=0, options={"max_new_tokens": 9})
    for step in range(6):
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert mask[EOS] == (step >= 3)
        assert np.delete(mask, EOS).all()
        *_, info = env.step(40)
    assert "action_mask" not in make(tiny).reset(seed=0)[1]


def test_an_illegal_early_end_ends_the_episode_and_is_scored(tiny):
    env = make(tiny, min_new_tokens=3)
    rewards, _, info = run_episode(env, [EOS], seed=0)
    assert info["completion_tokens"] == 1
    assert rewards == [info["score"]]


def test_options_do_not_change_the_episodes_that_follow(tiny):
    plain, guided = make(tiny), make(tiny)
    plain.reset(seed=3)
    guided.reset(seed=3, options={"prompt": "I", "max_new_tokens": 2})
    assert data_equivalence(plain.reset(), guided.reset(), exact=True)


def test_a_time_limit_truncates_without_a_score(tiny):
    env = make(tiny, max_episode_steps=2)
    env.reset(seed=0, options={"max_new_tokens": 9})
    env.step(40)
    _, reward, terminated, truncated, info = env.step(40)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "score" not in info


def test_stepping_past_the_end_is_refused(tiny):
    env = make(tiny).unwrapped
    with pytest.raises(ResetNeeded):
        env.step(40)
    run_episode(env, seed=0)
    with pytest.raises(ResetNeeded):
        env.step(40)


@pytest.mark.parametrize("action", [-1, 10_000, 1.5, "a", [5], np.array([5]), torch.tensor(5)])
def test_an_action_that_is_no_token_is_refused(tiny, action):
    env = make(tiny).unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidArgumentError, match=r"action=.*an int or NumPy integer"):
        env.step(action)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_new_tokens": 0}, "min_new_tokens=0"),
        ({"min_new_tokens": 10}, "min_new_tokens=10: must not be greater"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"max_new_tokens": 60}, "reward model takes 64"),
        ({"render_mode": "rgb"}, "render_mode"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["fine", 3]}, "prompts"),
        ({"tokenizer": object()}, "tokenizer"),
        ({"reward_model": object()}, "reward_model"),
        ({"reward_model": "./nowhere"}, "no such folder"),
    ],
)
def test_bad_arguments_are_refused_at_construction(tiny, changes, message):
    with pytest.raises((InvalidArgumentError, gym.error.Error), match=message):
        textgym.envs.TextGenerationEnv(**{**tiny, **changes})


@pytest.mark.parametrize("options", [{"prompt": ""}, {"prompt": "word " * 60}])
def test_prompts_that_do_not_fit_are_refused_at_reset(tiny, options, tokenizer):
    bare = make_tokenizer()
    bare.backend_tokenizer.post_processor = None
    env = make(tiny, tokenizer=bare)
    with pytest.raises(InvalidArgumentError, match="prompt"):
        env.reset(options=options)


def test_without_attention_the_score_is_shown_on_the_last_token(tiny):
    def two(prompts, completions):
        return [2.0] * len(completions)

    env = make(tiny, reward_model=two, render_mode="ansi")
    env.reset(seed=0, options={"max_new_tokens": 3})
    for token in (40, 50, 60):
        env.step(token)
    text, caption = env.render().rsplit("\n", 1)
    assert text.count("48;2;") == 1
    assert "score +2.00" in caption


def test_ansi_rendering_shows_text_then_credit(tiny):
    env = make(tiny, render_mode="ansi")
    options = {"prompt": "This film", "max_new_tokens": 3}
    env.reset(seed=0, options=options)
    env.step(40)
    under_way = env.render()
    assert "This film" in under_way
    assert "48;2;" not in under_way
    env.step(50)
    *_, info = env.step(60)
    finished = env.render()
    assert f"score {info['score']:+.2f}" in finished
    assert "48;2;" in finished  # a background colour: credit


def test_human_rendering_prints_the_episode(tiny, capsys):
    env = make(tiny, render_mode="human")
    run_episode(env, [40, 50], seed=0, options={"prompt": "This film", "max_new_tokens": 2})
    printed = capsys.readouterr().out
    assert printed.count("This film") == 2  # as it is written, and with its credit
    assert "score" in printed
    assert "largest" in printed  # the legend


def test_importing_textgym_loads_neither_torch_nor_transformers():
    code = (
        "import sys, textgym, gymnasium; "
        "assert 'ABC-RLHF-v0' in gymnasium.registry; "
        "print([m for m in ('torch', 'transformers', 'stable_baselines3', 'datasets') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_environments_share_what_is_loaded_by_name(tmp_path, tiny, classifier, tokenizer):
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    by_name = {"tokenizer": str(tmp_path), "reward_model": str(tmp_path)}
    first, second = make(tiny, **by_name), make(tiny, **by_name)
    assert first.unwrapped.reward_model.model is second.unwrapped.reward_model.model


def test_a_loaded_classifier_serves_as_reward_model(tiny, classifier):
    env = make(tiny, reward_model=classifier)
    same = make(tiny)
    assert run_episode(env, seed=1)[0] == run_episode(same, seed=1)[0]


def test_dtype_is_that_of_the_model_loaded_by_name(tmp_path, tiny, classifier, tokenizer):
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    env = make(tiny, reward_model=str(tmp_path), dtype="bfloat16").unwrapped
    assert env.reward_model.model.dtype == torch.bfloat16
