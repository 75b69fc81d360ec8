"""NaN, infinities and other numbers that nothing can be learned from."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper

from textgym.agents import AGENTS, PPO, load_agent
from textgym.agents.losses import clip_gradients, whitening
from textgym.errors import NumericalError

MANY = 10**9


class Paying(VectorWrapper):
    """Changes what is paid for a completion, once some steps with ends have passed."""

    def __init__(self, env, quantity: str, value: float, after: int = 0) -> None:
        super().__init__(env)
        self.quantity, self.value, self.num_left = quantity, value, after

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.flatnonzero(infos.get("_score", np.zeros(self.num_envs, bool)))
        if len(ended):
            self.num_left -= 1
            row = ended[0]
            if self.num_left < 0 and self.quantity == "score":
                infos["score"][row] = rewards[row] = self.value
            elif self.num_left < 0 and self.quantity == "reward":
                rewards[row] = self.value
            elif self.num_left < 0:
                credit = np.zeros((self.num_envs, 16), np.float32)
                credit[row, 0] = self.value
                infos |= {"credit": credit, "_credit": infos["_score"]}
        return observations, rewards, terminated, truncated, infos


@pytest.fixture(params=AGENTS)
def make_agent(request, make_model, make_vector_env, tmp_path):
    def make(env=None, **hyperparameters):
        settings = {"episodes_per_iteration": 8, "minibatch_size": 4, "num_epochs": 1}
        settings |= {"log_dir": tmp_path / "run", "save_every": 1} | hyperparameters
        return AGENTS[request.param](make_model(), env or make_vector_env(4), **settings)

    return make


def train(agent, num_iterations: int):
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantity", ["score", "reward", "credit"])
def test_what_is_not_finite_is_named_with_its_completion(
    make_agent, make_vector_env, quantity, value
) -> None:
    agent = make_agent(Paying(make_vector_env(4), quantity, value))
    with pytest.raises(NumericalError) as caught:
        agent.learn(1)
    error = caught.value
    assert error.quantity == quantity
    assert error.value == value or math.isnan(value)
    assert "completion" in error.where
    assert "prompt" in error.where
    assert agent.history == []


def test_the_iteration_is_undone_and_the_last_checkpoint_stays(
    make_agent, make_vector_env, tmp_path
) -> None:
    agent = make_agent(Paying(make_vector_env(4), "score", math.nan, after=8))
    with pytest.raises(NumericalError):
        train(agent, 9)
    assert 0 < len(agent.history) < 9
    loaded = load_agent(tmp_path / "run", make_vector_env(4))
    assert loaded.history == agent.history
    train(loaded, 1)
    assert all(p.isfinite().all() for p in loaded.policy.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_diverged_are_named_before_a_token_is_chosen(make_agent, value) -> None:
    agent = train(make_agent(), 1)
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight[5] = value
    with pytest.raises(NumericalError, match=r"probability.*after the tokens \[.*learning_rate"):
        train(agent, 1)


def test_scores_too_large_for_float32_do_not_reach_the_weights(make_agent, make_vector_env) -> None:
    agent = make_agent(Paying(make_vector_env(4), "score", 3e38))
    with suppress(NumericalError):  # Where groups are compared, the others may outweigh it.
        agent.learn(1)
    assert all(p.isfinite().all() for p in agent.policy.parameters())


def test_a_loss_that_overflows_is_an_error_with_a_remedy(
    make_model, make_vector_env, tmp_path
) -> None:
    env = Paying(make_vector_env(4), "score", 3e38)
    agent = PPO(make_model(), env, episodes_per_iteration=8, log_dir=tmp_path)
    with pytest.raises(NumericalError, match=r"the value loss is inf.*scale the score"):
        agent.learn(1)


def test_large_scores_are_scaled_by_whitening(make_model, make_vector_env, tmp_path) -> None:
    class Scaled(VectorWrapper):
        def step(self, actions):
            observations, rewards, *rest, infos = self.env.step(actions)
            if "score" in infos:
                infos["score"] = infos["score"] * 1e6
            return observations, rewards * 1e6, *rest, infos

    agents = []
    for env in (make_vector_env(4), Scaled(make_vector_env(4))):
        settings = {"episodes_per_iteration": 8, "vf_coef": 1e-9, "kl_coef": 0.0}
        agents.append(PPO(make_model(), env, log_dir=tmp_path, **settings).learn(1))
    small, large = (agent.history[0]["train/policy_loss"] for agent in agents)
    assert large == pytest.approx(small, rel=1e-2, abs=1e-3)


def test_equal_scores_teach_nothing(make_agent, make_vector_env) -> None:
    class Constant(VectorWrapper):
        def step(self, actions):
            observations, rewards, *rest, infos = self.env.step(actions)
            if "score" in infos:
                infos["score"] = np.where(infos["_score"], 1.0, 0.0)
                rewards = np.where(infos["_score"], 1.0, 0.0)
            return observations, rewards, *rest, infos

    agent = make_agent(Constant(make_vector_env(4)), kl_coef=0.0).learn(1)
    assert all(p.isfinite().all() for p in agent.policy.parameters())
    if agent.name != "PPO":  # Its critic starts at 0, so the first advantages are not 0.
        assert agent.history[0]["train/grad_norm"] == pytest.approx(0, abs=1e-6)


def test_advantages_that_are_all_equal_become_0() -> None:
    shift, scale = whitening(torch.full((7,), 3.0))
    assert ((torch.full((7,), 3.0) - shift) * scale).tolist() == [0.0] * 7


def test_completions_of_one_token_are_trained_on(make_agent, make_vector_env) -> None:
    agent = make_agent(make_vector_env(4, min_new_tokens=1, max_new_tokens=1)).learn(1)
    assert agent.history[0]["rollout/episode_length"] == 1
    assert all(p.isfinite().all() for p in agent.policy.parameters())


def test_an_exploding_gradient_names_the_terms_of_the_loss() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([math.inf, 1.0])
    terms = {"the policy loss": torch.tensor(math.inf), "the entropy": torch.tensor(1.0)}
    with pytest.raises(NumericalError, match=r"the policy loss is inf: .*max_approx_kl"):
        clip_gradients([weight], 1.0, terms)
    with pytest.raises(NumericalError, match="though the loss is finite"):
        clip_gradients([weight], 1.0)
