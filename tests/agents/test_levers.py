"""The usual levers of PPO: schedules, Adam's epsilon, early stops, penalties, controllers."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from textgym.agents import AGENTS, GRPO, PPO, RLOO, ppo
from textgym.agents.agent import Agent
from textgym.agents.critics import HeadCritic
from textgym.agents.kl import kl_estimate
from textgym.agents.kl_control import AdaptiveKLController, LogPIKLController
from textgym.agents.ppo import PPOConfig
from textgym.errors import InvalidArgumentError

MANY = 10**9


@pytest.fixture
def make_agent(make_model, make_vector_env, tmp_path):
    def make(agent_class: type[Agent] = PPO, **hyperparameters) -> Agent:
        settings = {
            "episodes_per_iteration": 8, "learning_rate": 3e-3, "num_epochs": 2,
            "minibatch_size": 4, "log_dir": tmp_path / "run",
        }  # fmt: skip
        return agent_class(make_model(), make_vector_env(4), **settings | hyperparameters)

    return make


def train(agent: Agent, num_iterations: int) -> Agent:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def parameters(agent: Agent) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def num_steps(agent: Agent) -> int:
    """Gradient steps so far."""
    steps = {int(state["step"]) for state in agent.optimizer.state_dict()["state"].values()}
    assert len(steps) == 1
    return steps.pop()


# --- Learning rate


def test_the_learning_rate_warms_up_and_anneals() -> None:
    config = PPOConfig(warmup_iterations=4, anneal_iterations=10)
    factors = [config.learning_rate_factor(iteration) for iteration in range(1, 13)]
    expected = [0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    assert factors == pytest.approx(expected)
    assert {PPOConfig().learning_rate_factor(i) for i in range(1, 1_000)} == {1.0}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_follow_the_schedule_across_checkpoints(
    make_agent, make_vector_env, tmp_path, name: str
) -> None:
    settings = {"warmup_iterations": 2, "anneal_iterations": 4}
    whole, half = (train(make_agent(AGENTS[name], **settings), n) for n in (4, 2))
    half.save(tmp_path / "half")
    resumed = train(AGENTS[name].load(tmp_path / "half", make_vector_env(4)), 2)
    rates = [row["train/learning_rate"] for row in whole.history]
    assert rates == pytest.approx([3e-3 * factor for factor in (0.5, 0.75, 0.5, 0.25)])
    assert torch.equal(parameters(whole), parameters(resumed))


def test_a_learning_rate_of_zero_ends_the_training(make_agent) -> None:
    agent = train(make_agent(anneal_iterations=1), 1)
    before = parameters(agent)
    assert torch.equal(parameters(train(agent, 1)), before)


def test_epsilon_reaches_adam_and_matters(make_agent) -> None:
    plain, damped = make_agent(), make_agent(adam_eps=1e-5)
    assert damped.optimizer.param_groups[0]["eps"] == 1e-5
    assert plain.optimizer.param_groups[0]["eps"] == 1e-8
    assert not torch.equal(parameters(train(plain, 1)), parameters(train(damped, 1)))


# --- Early stop


def test_an_update_ends_early_when_the_policy_has_moved_too_far(make_agent, recorded) -> None:
    free = train(make_agent(num_epochs=10), 1)
    assert num_steps(free) == 20
    limit = 0.1 * free.history[0]["train/approx_kl"]
    stopped = train(make_agent(num_epochs=10, max_approx_kl=limit), 1)
    assert 1 <= num_steps(stopped) < 20
    # Only steps from policies within the limit are taken.
    assert stopped.history[0]["train/approx_kl"] <= limit


def test_a_limit_below_rounding_leaves_the_first_step(make_agent, monkeypatch) -> None:
    """Before it the policy is the old one, and what differs is rounding."""
    free = train(make_agent(), 1)
    monkeypatch.setattr(ppo, "kl_estimate", lambda log_ratio: kl_estimate(log_ratio) + 1e-8)
    limited = train(make_agent(max_approx_kl=1e-9), 2)
    assert num_steps(limited) == 2
    assert [list(row) for row in limited.history] == 2 * [list(free.history[0])]


def test_a_limit_that_is_never_reached_changes_nothing(make_agent) -> None:
    free, limited = train(make_agent(), 2), train(make_agent(max_approx_kl=1e9), 2)
    assert torch.equal(parameters(free), parameters(limited))


# --- Clipping


@pytest.mark.parametrize("agent_class", [PPO, RLOO, GRPO])
def test_a_wider_upper_clip_clips_less(make_agent, agent_class) -> None:
    settings = {"num_epochs": 8, "clip_coef": 0.02}
    narrow, wide = (
        train(make_agent(agent_class, clip_coef_high=high, **settings), 1).history[0]
        for high in (None, 10.0)
    )
    assert 0 < wide["train/clip_fraction"] < narrow["train/clip_fraction"]


# --- Penalty


@pytest.mark.parametrize("agent_class", [PPO, RLOO])
@pytest.mark.parametrize("whiten", [True, False])
def test_the_exact_penalty_holds_the_policy_at_its_reference(
    make_agent, agent_class, whiten: bool
) -> None:
    settings = {"kl_target": None, "kl_penalty": "exact", "max_grad_norm": 1e6}
    if agent_class is PPO:
        settings["whiten_advantages"] = whiten
    free, held = (
        train(make_agent(agent_class, kl_coef=coef, **settings), 12) for coef in (0.0, 5.0)
    )
    kl_free, kl_held = (
        sum(row["rollout/kl_exact"] for row in agent.history[-4:]) for agent in (free, held)
    )
    assert kl_held < 0.5 * kl_free


def test_one_step_of_the_exact_penalty_is_less_noisy(make_agent) -> None:
    # The same episodes, a reference that differs, no reward: gradients of many iterations against
    # their mean. The policy hardly moves, because the learning rate is next to nothing.
    spread = {}
    for name in ("k1", "exact"):
        agent = make_agent(
            kl_penalty=name, kl_coef=1.0, kl_target=None, learning_rate=1e-12, vf_coef=0.0,
            num_epochs=1, minibatch_size=None, max_grad_norm=1e9, whiten_advantages=False,
            gae_lambda=1.0,
        )  # fmt: skip
        with torch.no_grad():
            agent.ref_policy.model.lm_head.weight.mul_(0.5)
        gradients = []
        step = agent.optimizer.step

        def stepping(step=step, agent=agent, gradients=gradients):
            gradients.append(agent.policy.model.lm_head.weight.grad.clone())
            step()

        agent.optimizer.step = stepping
        train(agent, 40)
        stacked = torch.stack(gradients)
        spread[name] = stacked.var(dim=0).sum().item()
    assert spread["exact"] < 0.8 * spread["k1"]


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_other_penalties_are_paid_by_the_token(make_agent, recorded, name: str) -> None:
    agent = make_agent(kl_penalty=name, kl_coef=0.7)
    with torch.no_grad():
        agent.ref_policy.model.lm_head.weight.mul_(0.5)
    rollouts, calls = recorded(ppo, "collect_episodes"), recorded(ppo, "gae")
    train(agent, 1)
    rollout, rewards = rollouts[0].result, calls[0].args[0]
    paid = (rollout.credit - rewards)[rollout.completion_mask]
    assert (paid >= -1e-5).all()
    assert paid.max() > 0.01


def test_the_exact_kl_is_reported_beside_the_estimate(make_agent) -> None:
    agent = train(make_agent(episodes_per_iteration=64, kl_target=None, kl_coef=0.0), 6)
    sampled, exact = (
        sum(row[name] for row in agent.history) for name in ("rollout/kl", "rollout/kl_exact")
    )
    assert agent.history[0]["rollout/kl_exact"] == pytest.approx(0, abs=1e-6)
    assert exact == pytest.approx(sampled, rel=0.2)


# --- Controllers


@pytest.mark.parametrize("name", AGENTS)
def test_a_controller_by_name_continues_from_a_checkpoint(
    make_agent, make_vector_env, tmp_path, name: str
) -> None:
    settings = {"kl_controller": "pi", "kl_target": 0.2, "kl_horizon": 16}
    whole, half = (train(make_agent(AGENTS[name], **settings), n) for n in (5, 3))
    half.save(tmp_path / "half")
    resumed = train(AGENTS[name].load(tmp_path / "half", make_vector_env(4)), 2)
    assert isinstance(resumed.kl_controller, LogPIKLController)
    assert resumed.kl_controller.state_dict() == whole.kl_controller.state_dict()
    assert whole.kl_controller.last_kl != 0
    assert torch.equal(parameters(whole), parameters(resumed))


def test_an_interruption_restores_the_controllers_state(make_agent) -> None:
    agent = train(make_agent(kl_controller="pi", kl_target=0.2), 3)
    before = agent.kl_controller.state_dict()
    update = agent.kl_controller.update

    def updating(kl, num_episodes):
        update(kl, num_episodes)
        raise KeyboardInterrupt

    agent.kl_controller.update = updating
    with pytest.raises(KeyboardInterrupt):
        train(agent, 1)
    assert agent.kl_controller.state_dict() == before


class Alternating:
    """A controller of the user's own."""

    def __init__(self) -> None:
        self.coef = 0.1

    def update(self, kl, num_episodes):
        self.coef = 0.3 - self.coef

    def state_dict(self):
        return {"coef": self.coef}

    def load_state_dict(self, state):
        self.coef = state["coef"]


class Open(Alternating):
    """Its state is the object's own dict, which goes on changing."""

    def state_dict(self):
        return vars(self)

    def load_state_dict(self, state):
        vars(self).update(state)


def test_an_interruption_restores_a_controller_whose_state_is_not_a_copy(make_agent) -> None:
    agent = train(make_agent(kl_controller=Open()), 1)
    agent.optimizer.zero_grad = lambda: agent.kl_controller.update(0.0, 8)

    def stepping():
        raise KeyboardInterrupt

    agent.optimizer.step = stepping
    with pytest.raises(KeyboardInterrupt):
        train(agent, 1)
    assert agent.kl_controller.coef == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["kl_controller", "critic"])
@pytest.mark.parametrize("part", [None, 0.1, Alternating, HeadCritic])
def test_what_cannot_be_a_part_is_refused(make_agent, name: str, part) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}=.*pass an object like"):
        make_agent(**{name: part})


@pytest.mark.parametrize("name", ["ziegler", "pi"])
def test_the_weight_of_the_penalty_waits_while_only_the_critic_is_trained(
    make_agent, name: str
) -> None:
    """The policy does not move then, so its KL says nothing about the weight."""
    settings = {"kl_controller": name, "kl_target": 1.0, "kl_horizon": 20.0}
    agent = train(make_agent(**settings, critic_warmup=3), 5)
    coefs = [row["train/kl_coef"] for row in agent.history]
    assert coefs[0] == coefs[1] == coefs[2] == coefs[3] != coefs[4]


def test_a_controller_of_your_own_is_an_object_that_is_passed_again(
    make_agent, make_vector_env, tmp_path
) -> None:
    agent = train(make_agent(kl_controller=Alternating()), 3)
    assert [row["train/kl_coef"] for row in agent.history] == pytest.approx([0.1, 0.2, 0.1])
    assert agent.config.kl_controller == "custom"
    agent.save(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match=r"^kl_controller=.*pass it again"):
        PPO.load(tmp_path / "agent", make_vector_env(4))
    env, mine = make_vector_env(4), Alternating()
    assert PPO.load(tmp_path / "agent", env, kl_controller=mine).kl_controller is mine
    assert mine.coef == pytest.approx(0.2)


def test_no_update_can_turn_the_weight_negative() -> None:
    settings = {"kl_target": 6.0, "kl_horizon": 160.0}
    with pytest.raises(InvalidArgumentError, match=r"^kl_horizon=.*above 160"):
        PPOConfig(**settings, episodes_per_iteration=800)
    config = PPOConfig(**settings, episodes_per_iteration=784)
    controller = AdaptiveKLController(config.kl_coef, 6.0, config.kl_horizon)
    controller.update(0.0, config.episodes_per_iteration)
    assert controller.coef > 0


@pytest.mark.parametrize("name", ["ziegler", "pi"])
def test_a_weight_of_zero_cannot_be_steered(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^kl_coef=.*above 0"):
        PPOConfig(kl_coef=0.0, kl_target=6.0, kl_controller=name)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kl_controller": "pi"}, "kl_controller"),
        ({"kl_controller": Alternating(), "kl_target": 6.0}, "kl_target"),
    ],
)
def test_a_controller_or_a_target_without_effect_is_refused(make_agent, settings, name) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        make_agent(**settings)


def test_what_is_changed_on_loading_is_used(make_agent, make_vector_env, tmp_path) -> None:
    agent = make_agent()
    agent.save(tmp_path / "agent")
    changes = {"kl_coef": 0.5, "adam_eps": 1e-5, "seed": 7}
    loaded = PPO.load(tmp_path / "agent", make_vector_env(4), **changes)
    assert loaded.kl_controller.coef == 0.5
    assert [group["eps"] for group in loaded.optimizer.param_groups] == [1e-5]
    tokens = (one._generators["tokens"].get_state() for one in (loaded, make_agent(seed=7)))
    assert torch.equal(*tokens)
    steered = PPO.load(tmp_path / "agent", make_vector_env(4), kl_target=6.0, kl_controller="pi")
    assert isinstance(steered.kl_controller, LogPIKLController)
    assert PPO.load(tmp_path / "agent", make_vector_env(4), critic="none").config.critic == "none"


class Network(HeadCritic):
    """A critic with weights."""

    def __init__(self, size: int = 1) -> None:
        self.network = torch.nn.Linear(size, 1)

    def state_dict(self):
        return self.network.state_dict()

    def load_state_dict(self, state):
        self.network.load_state_dict(state)


@pytest.mark.parametrize(("saved", "change"), [(False, True), ({"r": 4}, False), (True, {"r": 4})])
def test_adapters_that_the_checkpoint_has_not_are_refused(
    make_agent, tmp_path, saved, change
) -> None:
    pytest.importorskip("peft")
    make_agent(lora=saved).save(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match=r"^lora=.*leave the argument out"):
        PPO.load(tmp_path / "agent", lora=change)


@pytest.mark.parametrize(
    ("saved", "change"),
    [("head", "separate"), ("head", Network()), (Network(), "head"), (Network(), Network(2))],
)
def test_a_critic_that_the_checkpoint_has_not_is_refused(
    make_agent, make_vector_env, tmp_path, saved, change
) -> None:
    make_agent(critic=saved).save(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match=r"^critic="):
        PPO.load(tmp_path / "agent", critic=change)


def test_numbers_of_numpy_become_plain_ones() -> None:
    config = PPOConfig(
        learning_rate=np.float32(0.5), episodes_per_iteration=np.int64(8), seed=np.int64(3)
    )
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(
        PPOConfig(learning_rate=0.5, episodes_per_iteration=8, seed=3)
    )


def test_custom_is_no_name(make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^kl_controller="):
        make_agent(kl_controller="custom")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_iterations", -1), ("anneal_iterations", 0), ("adam_eps", 0.0),
        ("max_approx_kl", 0.0), ("clip_coef_high", -0.1), ("kl_penalty", "k4"),
        ("kl_controller", "pid"), ("critic", "tail"), ("critic_lambda", 1.5),
        ("critic_learning_rate", 0.0), ("critic_warmup", -1), ("group_size", 3), ("group_size", 0),
        ("log_dir", __file__),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        PPOConfig(**{name: value})
