from __future__ import annotations

import math
from dataclasses import fields
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper

from textgym.agents import (
    GRPO,
    PPO,
    RLOO,
    ActionRules,
    LanguageModelPolicy,
    Rollout,
    SampledCompletion,
    SamplingRequest,
    collect_episodes,
)
from textgym.agents.environment import action_rules
from textgym.agents.sampling import check_completions
from textgym.errors import InvalidArgumentError


class Recorded:
    """A sampler that hands out given completions, and remembers what it was asked."""

    def __init__(self, completions, change=None) -> None:
        self.completions, self.change = completions, change
        self.calls: list[SimpleNamespace] = []

    def update(self, model) -> None:
        self.calls.append(SimpleNamespace(method="update", model=model))

    def sample(self, requests, rules, temperature):
        self.calls.append(
            SimpleNamespace(
                method="sample", requests=requests, rules=rules, temperature=temperature
            )
        )
        return self.completions


class Budgeted:
    """A sampler that uses up each budget with one token, which was certain."""

    def __init__(self, token: int = 5) -> None:
        self.token = token

    def update(self, model) -> None:
        pass

    def sample(self, requests, rules, temperature):
        budgets = [request.token_budget for request in requests]
        return [SampledCompletion([self.token] * n, [0.0] * n) for n in budgets]


@pytest.fixture
def policy(make_model, make_vector_env):
    return LanguageModelPolicy(make_model(), action_rules(make_vector_env(1)), temperature=0.9)


def streams(tokens: int = 1, seeds: int = 2) -> dict[str, torch.Generator]:
    return {
        "generator": torch.Generator().manual_seed(tokens),
        "seed_generator": torch.Generator().manual_seed(seeds),
    }


def completions_of(rollout: Rollout) -> list[SampledCompletion]:
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    return [
        SampledCompletion(ids[num_prompt:][mask].tolist(), logprobs[mask].tolist())
        for ids, mask, logprobs in zip(
            rollout.input_ids, rollout.completion_mask, rollout.logprobs, strict=True
        )
    ]


# --- Rollouts


@pytest.mark.parametrize("num_envs", [3, 12])
def test_a_sampler_that_says_what_the_policy_said_gives_the_same_rollout(
    policy, make_vector_env, num_envs
) -> None:
    own = collect_episodes(policy, make_vector_env(4), 12, **streams(), group_size=3)
    sampler = Recorded(completions_of(own))
    sampled = collect_episodes(
        policy, make_vector_env(num_envs), 12, **streams(), group_size=3, sampler=sampler
    )
    for field in fields(Rollout):
        mine, theirs = getattr(own, field.name), getattr(sampled, field.name)
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def test_the_log_probabilities_of_a_rollout_are_the_samplers(policy, make_vector_env) -> None:
    own = completions_of(collect_episodes(policy, make_vector_env(4), 8, **streams()))
    made_up = [SampledCompletion(c.token_ids, [-0.25] * len(c.token_ids)) for c in own]
    rollout = collect_episodes(
        policy, make_vector_env(4), 8, **streams(), sampler=Recorded(made_up)
    )
    assert (rollout.logprobs == -0.25 * rollout.completion_mask).all()


def test_what_a_sampler_is_asked(policy, make_vector_env) -> None:
    own = collect_episodes(policy, make_vector_env(4), 8, **streams(), group_size=2)
    sampler = Recorded(completions_of(own))
    collect_episodes(policy, make_vector_env(4), 8, **streams(), group_size=2, sampler=sampler)
    update, sample = sampler.calls  # the weights first
    assert (update.method, update.model) == ("update", policy.model)
    assert (sample.rules, sample.temperature) == (policy.rules, 0.9)
    prompts = [" ".join(map(str, request.prompt_ids)) for request in sample.requests]
    assert prompts == own.prompts
    assert [request.token_budget for request in sample.requests] == own.token_budgets.tolist()
    assert len({request.seed for request in sample.requests}) == 8  # also within a group


def test_a_rollout_ends_where_the_environment_is_cut_off_from_outside(policy, make_env) -> None:
    env = gym.wrappers.TimeLimit(make_env(min_new_tokens=3, max_new_tokens=6), 4)
    rollout = collect_episodes(policy, env, 12, **streams(), sampler=Budgeted())
    budgets = rollout.token_budgets
    assert torch.equal(rollout.truncated, budgets > 4)
    assert 0 < rollout.truncated.sum() < 12
    assert torch.equal(rollout.episode_lengths, budgets.clamp(max=4))


class EndsEarly(VectorWrapper):
    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        return observations, rewards, np.ones_like(terminated), truncated, infos


class GoesOn(VectorWrapper):
    def reset(self, **kwargs):
        observations, infos = self.env.reset(**kwargs)
        return observations, infos | {"token_budget": infos["token_budget"] - 1}


class Forgetful(VectorWrapper):
    def reset(self, **kwargs):
        observations, infos = self.env.reset(**kwargs)
        return observations, {name: infos[name] for name in infos if "token_budget" not in name}


class Moody(VectorWrapper):
    """Gives another prompt whenever it is reset."""

    num_resets = 0

    def reset(self, *, seed, **kwargs):
        self.num_resets += 1
        return self.env.reset(seed=[s + self.num_resets for s in seed], **kwargs)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (EndsEarly, "ended episode 0 after 1 of"),
        (GoesOn, "episode 0 goes on after"),
        (Forgetful, r'info\["token_budget"\]'),
        (Moody, "equal seeds must give equal prompts"),
    ],
)
def test_an_environment_must_keep_to_prompts_and_budgets(
    policy, make_vector_env, wrapper, message
) -> None:
    env = wrapper(make_vector_env(4))
    with pytest.raises(InvalidArgumentError, match=message):
        collect_episodes(policy, env, 4, **streams(), sampler=Budgeted())


# --- Checks

EOS = 2
RULES = ActionRules(num_actions=20, eos_token_id=EOS, min_new_tokens=2)
REQUESTS = [SamplingRequest([7], 5, seed=0), SamplingRequest([3, 4], 5, seed=1)]
GOOD = SampledCompletion([5, 6, EOS], [-1.0, 0.0, -3.0])


@pytest.mark.parametrize("tokens", [[5, 6, EOS], [5, 6, 7, 8, 9], [5, 6, 7, 8, EOS], [0, 19, EOS]])
def test_whole_completions_are_accepted(tokens) -> None:
    for kind in (list, np.array):
        completion = SampledCompletion(kind(tokens), kind([-1.0] * len(tokens)))
        check_completions([GOOD, completion], REQUESTS, RULES)


def test_without_eos_a_completion_uses_up_its_budget() -> None:
    rules = ActionRules(num_actions=20)
    check_completions([SampledCompletion([EOS] * 5, [-1.0] * 5)], REQUESTS[:1], rules)
    with pytest.raises(InvalidArgumentError, match="stops after 4 tokens"):
        check_completions([SampledCompletion([EOS] * 4, [-1.0] * 4)], REQUESTS[:1], rules)


@pytest.mark.parametrize(
    ("tokens", "logprobs", "message"),
    [
        ([5] * 6, [-1.0] * 6, "too long, with 6 tokens"),
        ([5, EOS], [-1.0] * 2, r"too short: token 1 is EOS \(2\), which is illegal before 2"),
        ([5, 6, 7], [-1.0] * 3, r"stops after 3 tokens, without EOS \(2\)"),
        ([], [], "stops after 0 tokens"),
        ([5, 6, EOS, 7], [-1.0] * 4, r"goes on after EOS \(2\), its token 2"),
        ([5, 20, EOS], [-1.0] * 3, "20 as token 1, which is no action"),
        ([5, -1, EOS], [-1.0] * 3, "-1 as token 1, which is no action"),
        ([5, 6.0, EOS], [-1.0] * 3, "6.0 as token 1, which is no action"),
        ([5, 6, EOS], [-1.0] * 2, "3 tokens and 2 log-probabilities"),
        ([5, 6, EOS], [-1.0] * 4, "3 tokens and 4 log-probabilities"),
        ([5, 6, EOS], [-1.0, math.nan, -1.0], "log-probability nan at token 1"),
        ([5, 6, EOS], [-1.0, -1.0, -math.inf], "log-probability -inf at token 2"),
        ([5, 6, EOS], [0.5, -1.0, -1.0], "log-probability 0.5 at token 0, above 0"),
    ],
)
def test_a_bad_completion_is_refused_with_its_episode_and_prompt(tokens, logprobs, message) -> None:
    bad = SampledCompletion(tokens, logprobs)
    with pytest.raises(InvalidArgumentError, match=message) as error:
        check_completions([GOOD, bad], REQUESTS, RULES)
    assert "episode 1 (prompt [3, 4], budget 5)" in str(error.value)


def test_there_is_one_completion_per_request() -> None:
    with pytest.raises(InvalidArgumentError, match=r"1: sample returned .* for 2 requests"):
        check_completions([GOOD], REQUESTS, RULES)


# --- Agents


class Shifted:
    """A sampler that knows the policy, and says that its tokens were less probable by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def update(self, model) -> None:
        self.model = model

    @torch.no_grad()
    def sample(self, requests, rules, temperature):
        policy, completions = LanguageModelPolicy(self.model, rules, temperature), []
        for request in requests:
            generator = torch.Generator().manual_seed(request.seed)
            tokens = torch.randint(3, 20, (request.token_budget,), generator=generator)
            ids = torch.cat([torch.tensor(request.prompt_ids), tokens])[None]
            valid = torch.ones_like(ids, dtype=torch.bool)
            logprobs = policy.evaluate(ids, valid, valid[:, : len(tokens)]).logprobs[0]
            completions.append(
                SampledCompletion(tokens.tolist(), (logprobs - math.log(self.factor)).tolist())
            )
        return completions


@pytest.mark.parametrize(
    ("agent_class", "hyperparameters", "cap", "weight"),
    [
        (PPO, {"vf_coef": 0.0}, 9.0, 1.5),
        (PPO, {"vf_coef": 0.0}, 1.25, 1.25),
        (PPO, {"vf_coef": 0.0}, None, 1.0),
        (GRPO, {}, 9.0, 1.5),
        (GRPO, {"advantages": "token"}, 9.0, 1.5),
        (RLOO, {"advantages": "token"}, 9.0, 1.5),
        (RLOO, {}, 9.0, 1.5**4),  # whole completions, of four tokens
        (RLOO, {}, 2.0, 2.0),
    ],
)
@pytest.mark.filterwarnings("ignore:iteration 1. the sampler is not the policy")
def test_the_gradient_of_the_surrogate_is_weighted(
    make_model, make_vector_env, tmp_path, agent_class, hyperparameters, cap, weight
) -> None:
    norms = []
    for factor in (1.0, 1.5):
        agent = agent_class(
            make_model(), make_vector_env(8, min_new_tokens=4, max_new_tokens=4),
            sampler=Shifted(factor), importance_cap=cap, episodes_per_iteration=8, num_epochs=1,
            minibatch_size=None, kl_coef=0.0, log_dir=tmp_path, **hyperparameters,
        )  # fmt: skip
        norms.append(agent.learn(1).history[0]["train/grad_norm"])
    assert norms[0] > 0.01
    assert norms[1] / norms[0] == pytest.approx(weight, rel=1e-4)


@pytest.mark.parametrize("agent_class", [PPO, RLOO, GRPO])
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(
    make_model, make_vector_env, tmp_path, agent_class
) -> None:
    def two(agent):
        return agent.learn(10_000, callback=lambda row: len(agent.history) < 2)

    settings = {"sampler": Shifted(1.0), "episodes_per_iteration": 8, "log_dir": tmp_path}
    whole = two(agent_class(make_model(), make_vector_env(4), **settings))
    agent_class(make_model(), make_vector_env(4), **settings).learn(1).save(tmp_path / "agent.pt")
    resumed = two(agent_class.load(tmp_path / "agent.pt", make_vector_env(4), sampler=Shifted(1.0)))
    for row, other in zip(whole.history, resumed.history, strict=True):
        assert {**row, "time/seconds": 0} == {**other, "time/seconds": 0}


@pytest.mark.parametrize("sampler", [None, object(), SimpleNamespace(update=print), print])
def test_an_object_without_the_methods_is_refused(
    make_model, make_vector_env, tmp_path, sampler
) -> None:
    with pytest.raises(InvalidArgumentError, match="no method"):
        PPO(make_model(), make_vector_env(4), sampler=sampler, log_dir=tmp_path)


def test_an_unknown_name_and_a_cap_below_1_are_refused(make_model, make_vector_env) -> None:
    for wrong in ({"sampler": "vllm"}, {"importance_cap": 0.5}):
        with pytest.raises(InvalidArgumentError, match="must be"):
            RLOO(make_model(), make_vector_env(4), **wrong)


def test_a_checkpoint_needs_the_sampler_again_or_the_policy_in_its_place(
    make_model, make_vector_env, tmp_path
) -> None:
    env, sampler = make_vector_env(4), Budgeted()
    agent = GRPO(make_model(), env, sampler=sampler, log_dir=tmp_path)
    agent.save(tmp_path / "agent.pt")
    with pytest.raises(InvalidArgumentError, match="pass it again, as sampler="):
        GRPO.load(tmp_path / "agent.pt", env)
    assert GRPO.load(tmp_path / "agent.pt", env, sampler=sampler).sampler is sampler
    assert GRPO.load(tmp_path / "agent.pt", env, sampler="policy").sampler is None
