"""What RLOO and GRPO share: groups of equal prompts, weights by credit, the loop around them."""

from __future__ import annotations

import inspect
import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorWrapper

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import GRPO, PPO, RLOO, collect_episodes, groups
from textgym.agents.environment import action_rules
from textgym.agents.groups import GroupAgent, credit_weights
from textgym.agents.policy import LanguageModelPolicy
from textgym.errors import InvalidArgumentError

MANY = 10**9
GROUP = 4


class Credit(VectorWrapper):
    """Hands over random credit, of both signs, that sums to the score."""

    def __init__(self, env, seed: int) -> None:
        super().__init__(env)
        self._rng = np.random.default_rng(seed)

    def step(self, actions):
        *rest, infos = self.env.step(actions)
        if "_score" in infos:
            infos["credit"] = np.full(self.num_envs, None, dtype=object)
            infos["_credit"] = infos["_score"]
            for row in np.flatnonzero(infos["_score"]):
                credit = self._rng.normal(size=len(self.env.unwrapped.envs[row].completion))
                credit[-1] += infos["score"][row] - credit.sum()
                infos["credit"][row] = credit.astype(np.float32)
        return *rest, infos


@pytest.fixture(params=[RLOO, GRPO], ids=["rloo", "grpo"])
def agent_class(request):
    return request.param


@pytest.fixture
def make_agent(agent_class, make_model, make_vector_env, tmp_path):
    def make(env=None, model=None, **hyperparameters) -> GroupAgent:
        settings = {
            "episodes_per_iteration": 8,
            "group_size": GROUP,
            "learning_rate": 3e-3,
            "log_dir": tmp_path / "run",
        }
        return agent_class(
            model or make_model(), env or make_vector_env(4), **settings | hyperparameters
        )

    return make


def train(agent: GroupAgent, num_iterations: int) -> GroupAgent:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def parameters(agent) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "time/seconds"} for row in history]


# --- Groups


@pytest.mark.parametrize("num_envs", [1, 3, 4, 6])  # groups in one round, and across rounds
def test_a_group_starts_from_one_prompt(make_model, make_vector_env, generator, num_envs) -> None:
    env = make_vector_env(num_envs)
    policy = LanguageModelPolicy(make_model(), action_rules(env))
    rollout = collect_episodes(policy, env, 12, generator, group_size=GROUP)
    groups = [rollout.prompts[first : first + GROUP] for first in range(0, 12, GROUP)]
    assert [len(set(group)) for group in groups] == [1, 1, 1]
    assert len({group[0] for group in groups}) == 3
    assert len(set(rollout.completions)) > 3


@pytest.mark.parametrize("env_id", ["ABC-RLHF-v0", "ABC-RLHF-Planted-v0"])
def test_rows_of_the_real_environment_with_equal_seeds_draw_equal_prompts_and_budgets(
    env_id: str,
) -> None:
    envs = gym.make_vec(env_id, num_envs=6, autoreset_mode=AutoresetMode.DISABLED)
    observations, infos = envs.reset(seed=[5, 5, 5, 9, 9, 9])
    for first in (0, 3):
        for row in range(first, first + 3):
            for key in ("input_ids", "attention_mask"):
                np.testing.assert_array_equal(observations[key][row], observations[key][first])
            assert infos["token_budget"][row] == infos["token_budget"][first]
    assert (observations["input_ids"][0] != observations["input_ids"][3]).any()


def test_a_rollout_in_groups_of_one_is_the_rollout_without_groups(
    make_model, make_vector_env
) -> None:
    env = make_vector_env(4)
    policy = LanguageModelPolicy(make_model(), action_rules(env))
    prompts = []
    for arguments in ({}, {"group_size": 1}):
        rollout = collect_episodes(policy, env, 8, torch.Generator().manual_seed(1), **arguments)
        prompts.append(rollout.prompts)
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == 8


def test_an_environment_whose_prompts_do_not_follow_from_the_seed_is_refused(
    make_model, make_vector_env, generator
) -> None:
    class Restless(VectorWrapper):
        def reset(self, *, seed=None, options=None):
            return self.env.reset(seed=[one + row for row, one in enumerate(seed)])

    env = Restless(make_vector_env(4))
    policy = LanguageModelPolicy(make_model(), action_rules(env))
    collect_episodes(policy, env, 4, generator)
    with pytest.raises(InvalidArgumentError, match="equal seeds must start from equal prompts"):
        collect_episodes(policy, env, 4, generator, group_size=2)


def test_groups_that_do_not_fill_the_rollout_are_refused(
    make_model, make_vector_env, generator
) -> None:
    env = make_vector_env(4)
    policy = LanguageModelPolicy(make_model(), action_rules(env))
    for group_size in (0, 3):
        with pytest.raises(InvalidArgumentError, match=r"^group_size="):
            collect_episodes(policy, env, 8, generator, group_size=group_size)


def test_a_truncated_episode_is_refused(make_agent, make_env) -> None:
    env = gym.wrappers.TimeLimit(make_env(min_new_tokens=5, max_new_tokens=6), 2)
    with pytest.raises(InvalidArgumentError, match="TimeLimit"):
        make_agent(env=env).learn(1)


# --- Weights by credit


def ragged_credit(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 4])[:, None]
    credit = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    return credit.masked_fill(~mask, 1e6), mask


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [1e-42, 1e-20, 1.0, 1e20, 3e38])
def test_weights_have_mean_one_whatever_the_scale_of_credit(strength: float, scale: float) -> None:
    credit, mask = ragged_credit()
    credit = credit / credit.abs()[mask].max() * scale
    weights = credit_weights(credit, mask, strength)
    torch.testing.assert_close(weights.sum(1) / mask.sum(1), torch.ones(4))
    assert (weights[mask] >= 1 - strength - 1e-6).all()
    assert (weights[~mask] == 0).all()


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_weights_equal_the_definition(strength: float) -> None:
    credit, mask = ragged_credit()
    weights = credit_weights(credit, mask, strength)
    for row, length in enumerate(mask.sum(1).tolist()):
        sizes = [abs(c) for c in credit[row, :length].tolist()]
        for t in range(length):
            expected = (1 - strength) + strength * length * sizes[t] / sum(sizes)
            assert weights[row, t].item() == pytest.approx(expected, rel=1e-5)


def test_credit_that_cancels_and_credit_that_is_zero_have_weights() -> None:
    credit = torch.tensor([[3.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert credit_weights(credit, mask).tolist() == [[1.5, 1.5, 0.0], [1.0, 1.0, 1.0]]


def test_without_strength_all_weights_are_exactly_one() -> None:
    credit, mask = ragged_credit()
    assert torch.equal(credit_weights(credit, mask, 0.0), mask.float())


def test_redistribution_is_a_no_op_without_weights_and_is_one_no_more_with_them(
    make_agent, make_vector_env
) -> None:
    plain = parameters(train(make_agent(), 2))
    for seed in (0, 1):
        credited = make_agent(env=Credit(make_vector_env(4), seed))
        assert torch.equal(parameters(train(credited, 2)), plain)
    weighted = make_agent(env=Credit(make_vector_env(4), 0), credit_weights=0.5)
    assert not torch.equal(parameters(train(weighted, 2)), plain)


def test_weights_come_from_the_credit_of_the_rollout(
    make_agent, make_vector_env, agent_class, recorded
) -> None:
    agent = make_agent(env=Credit(make_vector_env(4), 0), credit_weights=0.5)
    rollouts = recorded(groups, "collect_episodes")
    weights = recorded(sys.modules[agent_class.__module__], "credit_weights")
    train(agent, 1)
    rollout = rollouts[0].result
    expected = credit_weights(rollout.credit, rollout.completion_mask, 0.5)
    assert torch.equal(weights[0].result, expected)
    assert (expected != 1)[rollout.completion_mask].any()


# --- Advantages of tokens


def test_sparse_credit_gives_tokens_the_advantage_of_their_completion(make_agent) -> None:
    # One gradient step at the policy that sampled: the ratio of RLOO's completion is not clipped.
    one_step = {"num_epochs": 1, "minibatch_size": None, "max_grad_norm": 1e9}
    by_completion, by_token = (
        train(make_agent(advantages=name, **one_step), 1) for name in ("sequence", "token")
    )
    torch.testing.assert_close(parameters(by_token), parameters(by_completion), atol=1e-4, rtol=0)


def test_token_advantages_take_the_credit(make_agent, make_vector_env) -> None:
    runs = [
        parameters(train(make_agent(Credit(make_vector_env(4), seed), advantages="token"), 2))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# --- Training


def test_equal_seeds_give_equal_runs_and_others_do_not(make_agent) -> None:
    first, second, other = (train(make_agent(seed=seed), 2) for seed in (1, 1, 2))
    assert torch.equal(parameters(first), parameters(second))
    assert without_time(first.history) == without_time(second.history)
    assert not torch.equal(parameters(first), parameters(other))


def test_an_epoch_of_one_minibatch_is_one_step_from_the_policy_that_sampled(make_agent) -> None:
    agent = make_agent(num_epochs=1, minibatch_size=None)
    before = parameters(agent)
    row = train(agent, 1).history[0]
    assert row["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert row["train/clip_fraction"] == 0
    assert not torch.equal(before, parameters(agent))
    steps = {int(state["step"]) for state in agent.optimizer.state_dict()["state"].values()}
    assert steps == {1}


def test_minibatches_and_epochs_are_steps_of_their_own(make_agent) -> None:
    agent = train(make_agent(minibatch_size=3, num_epochs=2), 1)  # 3 + 3 + 2 episodes, twice
    steps = {int(state["step"]) for state in agent.optimizer.state_dict()["state"].values()}
    assert steps == {6}
    assert agent.history[0]["train/approx_kl"] > 0


def test_there_is_no_critic(make_agent) -> None:
    agent = train(make_agent(ent_coef=0.1), 2)
    assert all((p == 0).all() for p in agent.policy.value_head.parameters())


def test_the_penalty_holds_the_policy_at_its_reference(make_agent) -> None:
    free, held = (
        train(make_agent(kl_coef=kl_coef, kl_target=None, max_grad_norm=1e6), 12)
        for kl_coef in (0.0, 5.0)
    )
    kl_free, kl_held = (
        np.mean([row["rollout/kl"] for row in agent.history[-4:]]) for agent in (free, held)
    )
    assert kl_held < 0.5 * kl_free


def test_entropy_bonus_raises_the_entropy(make_agent) -> None:
    plain, bonus = (train(make_agent(ent_coef=coef), 8) for coef in (0.0, 1.0))
    assert bonus.history[-1]["train/entropy"] > plain.history[-1]["train/entropy"]


def test_autocast_trains(make_agent) -> None:
    agent = train(make_agent(dtype="bfloat16"), 2)
    assert agent.history[0]["rollout/kl"] == 0.0
    assert parameters(agent).isfinite().all()


def test_group_std_is_that_of_the_returns_within_groups(make_agent) -> None:
    row = train(make_agent(), 1).history[0]
    again = make_agent()
    scores = collect_episodes(
        again.policy,
        again.env,
        8,
        again._generators["tokens"],
        again._generators["episodes"],
        GROUP,
    ).scores.numpy()
    expected = np.mean([scores[:GROUP].std(), scores[GROUP:].std()])
    assert row["rollout/group_std"] == pytest.approx(expected, rel=1e-5)


# --- Logs and checkpoints


def test_every_scalar_is_documented(make_agent) -> None:
    for name in train(make_agent(), 1).history[0]:
        assert f"\n{name} " in inspect.getdoc(GroupAgent)


def test_scalars_are_named_as_those_of_ppo(make_agent, make_model, make_vector_env) -> None:
    agent = train(make_agent(), 1)
    ppo = PPO(make_model(), make_vector_env(4), episodes_per_iteration=8, log_dir=agent.log_dir)
    ppo.learn(1)
    of_critic = {"train/value_loss", "train/explained_variance"}
    assert set(ppo.history[0]) - of_critic <= set(agent.history[0])


def test_a_stop_in_between_changes_nothing(make_agent, make_vector_env, tmp_path) -> None:
    settings = {"minibatch_size": 4, "num_epochs": 2}
    whole = train(make_agent(**settings), 4)
    half = train(make_agent(**settings), 2)
    half.save(tmp_path / "half")
    resumed = train(type(half).load(tmp_path / "half", make_vector_env(4)), 2)
    assert torch.equal(parameters(whole), parameters(resumed))
    assert without_time(whole.history) == without_time(resumed.history)
    assert whole.kl_controller.coef == resumed.kl_controller.coef
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed.history


# --- Errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_size", 1), ("group_size", 2.0), ("group_size", 5), ("clip_coef", 0.0),
        ("clip_coef_high", 0.0), ("advantages", "word"), ("credit_weights", -0.1),
        ("credit_weights", 1.5), ("credit_weights", True),
        ("episodes_per_iteration", 0), ("minibatch_size", 17), ("minibatch_size", 0),
        ("learning_rate", 0), ("kl_coef", -0.1), ("temperature", 0), ("device", "abacus"),
    ],
)  # fmt: skip
def test_a_hyperparameter_out_of_range_is_named(agent_class, name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        agent_class.config_class(**{name: value})


def test_weights_and_token_advantages_exclude_each_other(make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^credit_weights="):
        make_agent(advantages="token", credit_weights=0.5)


def test_hyperparameters_of_a_critic_are_unknown(make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match="no such hyperparameter"):
        make_agent(gae_lambda=0.9)
