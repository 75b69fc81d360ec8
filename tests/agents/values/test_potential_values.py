"""A potential as a critic, against the same potential as shaping."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import LanguageModelPolicy, collect_episodes
from textgym.agents.environment import action_rules
from textgym.agents.ppo import gae
from textgym.agents.values import potential_values
from textgym.credit import ReferenceValue
from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model
from textgym.wrappers.vector import PotentialShaping


def length(prompt, completion):
    """A potential that no reward model gives; it is not 0 at the start."""
    return 0.1 * len(completion) + 0.2 * len(prompt)


@pytest.fixture(scope="module")
def envs():
    return gym.make_vec(
        "ABC-RLHF-Planted-v0", num_envs=4, autoreset_mode="Disabled", min_new_tokens=3
    )


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(
    "potential",
    ["prefix-score", "attention-weighted-prefix-score", ReferenceValue([[0.5, -0.5, 0.2]]), length],
)
def test_a_critic_and_shaping_give_the_same_advantages(
    envs, generator, potential, gae_lambda
) -> None:
    """Shaping by Φ - Φ(start), with the critic Φ(start), has the advantages of the critic Φ."""
    policy = LanguageModelPolicy(load_language_model("planted"), action_rules(envs))
    rollout = collect_episodes(policy, PotentialShaping(envs, potential), 8, generator)
    mask = rollout.completion_mask
    is_last = torch.arange(mask.shape[1]) == rollout.episode_lengths[:, None] - 1
    values = potential_values(potential, envs, rollout)
    by_critic, _ = gae(rollout.scores[:, None] * is_last, values, mask, 1.0, gae_lambda)
    at_start = values[:, :1].expand_as(values)
    by_shaping, _ = gae(rollout.rewards, at_start, mask, 1.0, gae_lambda)
    torch.testing.assert_close(by_critic, by_shaping, atol=1e-4, rtol=0)
    assert values[mask].std() > 0.1
    assert len(set(rollout.episode_lengths.tolist())) > 1


def test_an_environment_without_a_reward_model_is_refused(
    make_vector_env, make_model, generator
) -> None:
    env = make_vector_env(2)
    rollout = collect_episodes(
        LanguageModelPolicy(make_model(), action_rules(env)), env, 2, generator
    )
    with pytest.raises(InvalidArgumentError, match="reward model"):
        potential_values("prefix-score", env, rollout)
