"""Fitting the reference policy's value in an environment."""

from __future__ import annotations

import copy

import gymnasium as gym
import pytest
import torch

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO, LanguageModelPolicy, collect_episodes
from textgym.agents.environment import action_rules, as_vector_env
from textgym.agents.values import fit_reference_value
from textgym.credit import ReferenceValue
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, PrefixScores, load_language_model
from textgym.wrappers import PotentialShaping
from textgym.wrappers.vector import PotentialShaping as VectorPotentialShaping

NUM_EPISODES = 96


@pytest.fixture(scope="module")
def envs():
    arguments = {"min_new_tokens": 16, "max_new_tokens": 16}
    return gym.make_vec("ABC-RLHF-v0", num_envs=32, autoreset_mode="Disabled", **arguments)


@pytest.fixture(scope="module")
def fit(envs):
    return fit_reference_value("embedded", envs, NUM_EPISODES)


def test_the_score_is_known_the_better_the_more_tokens_there_are(fit) -> None:
    explained = fit.explained_variance
    assert explained.shape == (16,)
    assert explained[1] < explained[8] < explained[15]
    assert explained[15] > 0.8
    assert fit.num_tokens > 15 * NUM_EPISODES * 0.9


def test_the_agents_reference_policy_and_the_models_name_give_the_same(fit, envs, tmp_path) -> None:
    agent = PPO("embedded", envs, episodes_per_iteration=32, log_dir=tmp_path)
    again = fit_reference_value(agent.ref_policy, agent.env, NUM_EPISODES)
    torch.testing.assert_close(again.potential.coefficients, fit.potential.coefficients)


def test_what_shaping_pays_leaves_the_fit(fit, envs) -> None:
    shaped = VectorPotentialShaping(envs, fit.potential)
    again = fit_reference_value("embedded", shaped, NUM_EPISODES)
    torch.testing.assert_close(again.potential.coefficients, fit.potential.coefficients)


def test_shaping_reads_one_token_per_step(fit) -> None:
    env = PotentialShaping(gym.make("ABC-RLHF-v0"), fit.potential)
    assert env._term_reader.is_incremental


def test_what_is_fitted_is_the_environments_score(generator) -> None:
    # Scored by a program, not by its reward model.
    env = gym.make_vec("ABC-RLHF-Planted-v0", num_envs=32, autoreset_mode="Disabled")
    potential = fit_reference_value("planted", env, NUM_EPISODES, seed=0).potential
    policy = LanguageModelPolicy(load_language_model("planted"), action_rules(as_vector_env(env)))
    rollout = collect_episodes(policy, env, NUM_EPISODES, generator.manual_seed(0))
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    mask = torch.nn.functional.pad(rollout.completion_mask, (num_prompt, 0))
    texts = Completions(rollout.input_ids, rollout.attention_mask, mask)
    scored = env.unwrapped.reward_model.read(texts, [PrefixScores()])
    by_program = ReferenceValue.fit(texts.with_score(rollout.scores, scored.readouts))
    torch.testing.assert_close(potential.coefficients, by_program.coefficients)
    by_reward_model = ReferenceValue.fit(scored)
    assert not torch.allclose(potential.coefficients, by_reward_model.coefficients)


def test_a_loaded_model_stays_in_training_mode() -> None:
    model = copy.deepcopy(load_language_model("planted")).train()
    env = gym.make_vec("ABC-RLHF-Planted-v0", num_envs=2, autoreset_mode="Disabled")
    fit_reference_value(model, env, 2)
    assert all(module.training for module in model.modules())


def test_a_truncated_episode_is_refused() -> None:
    """It has no score, and would count as one of 0."""
    env = gym.wrappers.TimeLimit(gym.make("ABC-RLHF-Planted-v0", min_new_tokens=3), 2)
    with pytest.raises(InvalidArgumentError, match=r"^env=.*truncated"):
        fit_reference_value("planted", env, 2)


def test_an_environment_without_a_reward_model_is_refused(make_vector_env, make_model) -> None:
    with pytest.raises(InvalidArgumentError, match="reward model"):
        fit_reference_value(make_model(), make_vector_env(2), 2)
