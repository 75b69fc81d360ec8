"""Values by sampled continuations, against exact values of a listed process."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.theory.process import (
    MIN_NEW_TOKENS,
    make_policy,
    make_process,
    make_reward_model,
    make_tokenizer,
)
from textgym.agents.environment import action_rules, as_vector_env
from textgym.agents.policy import LanguageModelPolicy
from textgym.agents.rollout import collect_episodes
from textgym.agents.values import monte_carlo_values, score_function
from textgym.agents.values.monte_carlo import State, continue_states
from textgym.errors import InvalidArgumentError
from textgym.exact import Trajectories, state_values
from textgym.models import Completions

NUM_CONTINUATIONS = 400


@pytest.fixture(scope="module")
def envs():
    process = make_process(make_reward_model(make_tokenizer()))
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=4, autoreset_mode="Disabled", **process._arguments()
    )


@pytest.fixture(scope="module")
def policy(envs):
    return LanguageModelPolicy(make_policy(envs.unwrapped.tokenizer), action_rules(envs))


@pytest.fixture
def rollout(policy, envs, generator):
    return collect_episodes(policy, envs, 8, generator)


@pytest.fixture
def token_policy(make_model, make_env):
    return LanguageModelPolicy(make_model(), action_rules(as_vector_env(make_env())))


def endings(start, budget, eos, num_tokens):
    """Every way to finish a completion within a token budget."""
    if start and (len(start) == budget or start[-1] == eos):
        return [start]
    legal = [token for token in range(num_tokens) if token != eos or len(start) >= MIN_NEW_TOKENS]
    return [text for token in legal for text in endings([*start, token], budget, eos, num_tokens)]


def exact_values(policy, envs, prompt, budget):
    """Mean and variance of the score from every state: a function of the completion so far."""
    eos, size = policy.rules.eos_token_id, policy.rules.num_actions
    texts = endings([], budget, eos, size)
    trajectories = Trajectories.of_texts(texts, num_actions=size)
    logits = np.zeros((trajectories.num_states, size))
    states = {}
    for row, text in enumerate(texts):
        for t in range(len(text)):
            states[tuple(text[:t])] = trajectories.states[row, t]
    for so_far, state in states.items():
        ids = torch.tensor([[*prompt, *so_far]])
        logits[state] = policy.next_token_logits(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    scores = envs.unwrapped.reward_model.read(
        Completions.from_lists([prompt] * len(texts), texts)
    ).score.numpy()
    returns = np.broadcast_to(scores[:, None], trajectories.mask.shape)
    mean = state_values(trajectories, logits, returns)
    variance = state_values(trajectories, logits, returns**2) - mean**2
    return {so_far: (mean[state], variance[state]) for so_far, state in states.items()}


def test_values_are_the_exact_ones_within_their_sampling_error(
    policy, envs, rollout, generator
) -> None:
    estimate = monte_carlo_values(
        policy, rollout, score_function(envs), NUM_CONTINUATIONS, generator
    )
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    errors, variances, num_states = [], [], 0
    for row, length in enumerate(rollout.episode_lengths.tolist()):
        ids = rollout.input_ids[row]
        prompt = ids[:num_prompt][rollout.attention_mask[row, :num_prompt]].tolist()
        completion = ids[num_prompt : num_prompt + length].tolist()
        exact = exact_values(policy, envs, prompt, int(rollout.token_budgets[row]))
        for t in range(length):
            mean, variance = exact[tuple(completion[:t])]
            error = float(estimate.values[row, t]) - mean
            errors.append(error / np.sqrt(variance / NUM_CONTINUATIONS))
            variances.append(float(estimate.variances[row, t]) * NUM_CONTINUATIONS / variance)
        num_states += length
        assert (estimate.values[row, length:] == 0).all()
    assert len(set(rollout.token_budgets.tolist())) > 1
    assert num_states > 20
    # In units of the exact standard error: none is large, and their mean square is about 1.
    assert np.abs(errors).max() < 4
    assert 0.4 < np.square(errors).mean() < 2
    assert np.mean(variances) == pytest.approx(1, abs=0.1)


def test_continuations_obey_the_rules_of_the_episode(token_policy, make_env, generator) -> None:
    eos, prompt = make_env.EOS, [5, 6]
    states = [State(prompt, [7] * t, budget) for budget in range(3, 7) for t in range(budget)] * 50
    completions = continue_states(token_policy, states, generator)
    for state, ids in zip(states, completions, strict=True):
        assert ids[: len(state.completion_ids)] == state.completion_ids
        assert len(ids) == state.token_budget or ids[-1] == eos
        assert len(state.completion_ids) < len(ids) <= state.token_budget
        assert eos not in ids[:-1]
        assert eos not in ids[: token_policy.rules.min_new_tokens]
    assert any(ids[-1] == eos for ids in completions)


def test_tokens_are_counted(token_policy, make_vector_env, generator) -> None:
    env = make_vector_env(4, min_new_tokens=5, max_new_tokens=5)  # EOS only ever at the last token
    rollout = collect_episodes(token_policy, env, 4, generator)
    long = dataclasses.replace(token_policy.rules, min_new_tokens=5)
    token_policy.rules = long
    scored = []

    def score(texts):
        scored.append(len(texts))
        return torch.zeros(len(texts))

    estimate = monte_carlo_values(token_policy, rollout, score, 3, generator)
    assert (rollout.episode_lengths == 5).all()
    assert estimate.num_tokens == 3 * 4 * (5 + 4 + 3 + 2 + 1)
    assert sum(scored) == 3 * 4 * 5


def test_the_generator_alone_decides(policy, envs, rollout) -> None:
    first, second, other = (
        monte_carlo_values(
            policy, rollout, score_function(envs), 2, torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.values, second.values)
    assert not torch.equal(first.values, other.values)


def test_one_continuation_has_no_estimate_of_its_variance(policy, envs, rollout, generator) -> None:
    estimate = monte_carlo_values(policy, rollout, score_function(envs), 1, generator)
    mask = rollout.completion_mask
    assert estimate.variances[mask].isnan().all()
    assert (estimate.variances[~mask] == 0).all()


@pytest.mark.parametrize("num_continuations", [0, -1, 1.5])
def test_there_must_be_continuations(policy, envs, rollout, generator, num_continuations) -> None:
    with pytest.raises(InvalidArgumentError, match="num_continuations"):
        monte_carlo_values(policy, rollout, score_function(envs), num_continuations, generator)


def test_token_budgets_must_be_known(policy, envs, rollout, generator) -> None:
    unknown = dataclasses.replace(rollout, token_budgets=torch.zeros_like(rollout.token_budgets))
    with pytest.raises(InvalidArgumentError, match="token_budget"):
        monte_carlo_values(policy, unknown, score_function(envs), 2, generator)


def test_the_program_scores_the_texts_of_the_planted_task() -> None:
    envs = gym.make_vec("ABC-RLHF-Planted-v0", num_envs=2, autoreset_mode="Disabled")
    words = envs.unwrapped.tokenizer.get_vocab()
    texts = Completions.from_lists([[words["the"]]] * 2, [[words["good"]], [words["awful"]]])
    assert score_function(envs)(texts).tolist() == [1, -2]


def test_only_a_text_environment_can_score(make_vector_env) -> None:
    with pytest.raises(InvalidArgumentError, match="env"):
        score_function(make_vector_env(2))
