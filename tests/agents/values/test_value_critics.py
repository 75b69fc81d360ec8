"""The values as critics, with rewards that are paid before the end."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO, LanguageModelPolicy, collect_episodes
from textgym.agents.critics import RewardModelCritic
from textgym.agents.environment import action_rules
from textgym.agents.returns import mean_of_others, returns_to_go
from textgym.agents.values import (
    MonteCarloCritic,
    PotentialCritic,
    PrefixTreeCritic,
    monte_carlo_values,
    score_function,
)
from textgym.credit import PrefixScoreCredit
from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model
from textgym.wrappers.vector import CreditAssignment

CONFIG = SimpleNamespace(gamma=1.0, group_size=1)


@pytest.fixture(scope="module")
def envs():
    envs = gym.make_vec(
        "ABC-RLHF-Planted-v0", num_envs=4, autoreset_mode="Disabled", min_new_tokens=3
    )
    return CreditAssignment(envs, "uniform")


@pytest.fixture(scope="module")
def policy(envs):
    return LanguageModelPolicy(load_language_model("planted"), action_rules(envs))


@pytest.fixture
def rollout(policy, envs, generator):
    return collect_episodes(policy, envs, 8, generator)


@pytest.fixture
def set_up(policy, envs, generator):
    def set_up(critic, config=CONFIG):
        generators = {"critic": generator}
        agent = SimpleNamespace(policy=policy, env=envs, config=config, _generators=generators)
        critic.set_up(agent)
        return critic

    return set_up


def test_the_prefix_score_as_a_potential_is_the_reward_model_as_a_critic(set_up, rollout) -> None:
    by_potential, expected = set_up(PotentialCritic("prefix-score")), set_up(RewardModelCritic())
    values = by_potential.known(rollout, rollout.credit)
    torch.testing.assert_close(values, expected.known(rollout, rollout.credit))
    assert values[rollout.completion_mask].std() > 0.1
    cut = dataclasses.replace(rollout, truncated=torch.arange(8) % 2 == 0)
    after = by_potential.after_truncation(cut)
    torch.testing.assert_close(after, expected.after_truncation(cut))
    assert (after != 0).any(dim=1).tolist() == cut.truncated.tolist()


@pytest.mark.parametrize("start", ["zero", "prompt"])
def test_a_potential_values_what_is_still_to_come_wherever_credit_starts(
    set_up, policy, envs, generator, start
) -> None:
    paid = CreditAssignment(envs.env, PrefixScoreCredit(start=start))
    rollout = collect_episodes(policy, paid, 8, generator)
    values = set_up(PotentialCritic("prefix-score")).known(rollout, rollout.credit)
    # The prefix score has been paid in full: whatever is still to come has the expectation 0.
    prompt = values[:, :1] if start == "zero" else torch.zeros(8, 1)
    torch.testing.assert_close(
        values,
        prompt.expand_as(values).masked_fill(~rollout.completion_mask, 0.0),
        atol=1e-5,
        rtol=0,
    )
    assert (prompt != 0).all() == (start == "zero")


def test_what_was_paid_is_no_longer_to_come(set_up, policy, envs, rollout, generator) -> None:
    state = generator.get_state()
    values = set_up(MonteCarloCritic(3)).known(rollout, rollout.credit)
    generator.set_state(state)
    estimate = monte_carlo_values(policy, rollout, score_function(envs), 3, generator)
    mask, lengths = rollout.completion_mask, rollout.episode_lengths[:, None]
    # The wrapper pays 0.8 of the score in equal parts, and the rest at the last token.
    paid = 0.8 * rollout.scores[:, None] * torch.arange(mask.shape[1]) / lengths
    expected = (estimate.values - paid).masked_fill(~mask, 0.0)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_sampled_tokens_are_counted(set_up, rollout) -> None:
    critic = set_up(MonteCarloCritic(2))
    critic.known(rollout, rollout.credit)
    budgets, lengths = rollout.token_budgets.tolist(), rollout.episode_lengths.tolist()
    most = sum(b - t for b, length in zip(budgets, lengths, strict=True) for t in range(length))
    assert sum(lengths) * 2 <= critic.num_tokens <= most * 2


def test_the_prefix_tree_knows_the_rewards_to_go_of_those_that_are_together(set_up) -> None:
    """Four completions that differ in their last token only, with rewards at every token."""
    together = torch.tensor([[1.0, -2.0, 0.5]])
    rewards = torch.cat([together.repeat(4, 1), torch.randn(4, 1)], dim=1)
    mask = torch.ones((4, 4), dtype=torch.bool)
    ids = torch.tensor([[9, 5, 6, 7, last] for last in range(4)])  # a prompt of one token
    critic = set_up(PrefixTreeCritic(), SimpleNamespace(gamma=1.0, group_size=4))
    values = critic.known(SimpleNamespace(input_ids=ids, completion_mask=mask), rewards)
    expected = mean_of_others(returns_to_go(rewards, mask), mask, 4)
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize(
    ("name", "gamma", "group_size"), [("group_size", 1, 1), ("gamma", 0.99, 2)]
)
def test_the_prefix_tree_needs_groups_and_no_discount(set_up, name, gamma, group_size) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        set_up(PrefixTreeCritic(), SimpleNamespace(gamma=gamma, group_size=group_size))


@pytest.mark.parametrize(("name", "value"), [("critic_warmup", 3), ("critic_lambda", 1.0)])
def test_the_prefix_tree_takes_no_settings_of_what_it_does_not_learn(
    envs, tmp_path, name, value
) -> None:
    settings = {"critic": PrefixTreeCritic(), "group_size": 4, "log_dir": tmp_path}
    with pytest.raises(InvalidArgumentError, match=f"^{name}={value}: .*learns nothing"):
        PPO("planted", envs, episodes_per_iteration=8, **settings, **{name: value})


def test_the_prefix_tree_needs_a_policy_that_can_be_trained(envs, tmp_path) -> None:
    model = copy.deepcopy(load_language_model("planted")).requires_grad_(False)
    settings = {"critic": PrefixTreeCritic(), "group_size": 4, "log_dir": tmp_path}
    with pytest.raises(InvalidArgumentError, match=r"^critic='PrefixTreeCritic'.*frozen"):
        PPO(model, envs, episodes_per_iteration=8, **settings)


def test_a_critic_that_samples_needs_a_continuation() -> None:
    with pytest.raises(InvalidArgumentError, match="num_continuations"):
        MonteCarloCritic(0)


CRITICS = {
    "potential": (lambda: PotentialCritic("prefix-score"), {"gae_lambda": 0.0}),
    "Monte Carlo": (lambda: MonteCarloCritic(2), {"gae_lambda": 0.0, "vf_coef": 0.0}),
    "prefix tree": (lambda: PrefixTreeCritic(), {"group_size": 4}),
}


@pytest.mark.parametrize("name", CRITICS)
def test_ppo_learns_with_it_and_continues_from_a_checkpoint(envs, tmp_path, name) -> None:
    make_critic, settings = CRITICS[name]
    unbroken = PPO(
        "planted",
        envs,
        critic=make_critic(),
        episodes_per_iteration=8,
        log_dir=tmp_path,
        **settings,
    )
    unbroken.learn(1)
    unbroken.save(tmp_path / "agent")
    unbroken.learn(1)
    continued = PPO.load(tmp_path / "agent", envs, critic=make_critic())
    continued.learn(1)
    pairs = zip(unbroken.policy.parameters(), continued.policy.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert len(continued.history) == 2
