"""What an agent does with the model that it is given."""

from __future__ import annotations

import ctypes

import pytest
import torch

from textgym.agents import AGENTS, PPO
from textgym.errors import InvalidArgumentError


@pytest.fixture
def make_agent(make_vector_env, tmp_path):
    def make(model, agent_class=PPO, **hyperparameters):
        settings = {"episodes_per_iteration": 8, "learning_rate": 3e-3, "log_dir": tmp_path}
        return agent_class(model, make_vector_env(4), **settings | hyperparameters)

    return make


def frozen_below_the_head(model):
    """Train the last layer and the language-model head only."""
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    model.model.layers[-1].requires_grad_(True)
    return model


# --- Frozen parameters


@pytest.mark.parametrize("name", AGENTS)
def test_frozen_parameters_stay_as_they_are(make_model, make_agent, name: str) -> None:
    agent = make_agent(frozen_below_the_head(make_model()), AGENTS[name]).learn(1)
    before = dict(make_model().named_parameters())
    for name, parameter in agent.policy.model.named_parameters():
        is_frozen = not name.startswith(("lm_head", "model.layers.1"))
        assert parameter.requires_grad != is_frozen
        assert torch.equal(parameter, before[name]) == is_frozen
        assert (f"model.{name}" in agent.trained_parameters) != is_frozen


def test_a_checkpoint_knows_what_is_frozen(
    make_model, make_agent, make_vector_env, tmp_path
) -> None:
    whole = make_agent(frozen_below_the_head(make_model())).learn(1)
    whole.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", make_vector_env(4)).learn(1)
    assert list(loaded.trained_parameters) == list(whole.trained_parameters)
    whole.learn(1)
    for first, second in zip(whole.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(first, second)


def test_with_a_frozen_model_ppo_trains_its_critic(make_model, make_agent) -> None:
    agent = make_agent(make_model().requires_grad_(False)).learn(1)
    for name, parameter in agent.policy.model.named_parameters():
        assert torch.equal(parameter, make_model().get_parameter(name))
    assert (agent.policy.value_head.weight != 0).any()


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_without_a_critic_a_frozen_model_is_refused(make_model, make_agent, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*requires_grad"):
        make_agent(make_model().requires_grad_(False), AGENTS[name])


def test_agents_made_in_the_same_second_have_folders_of_their_own(make_model, make_agent) -> None:
    folders = {make_agent(make_model(), log_dir=None).log_dir for _ in range(3)}
    assert len(folders) == 3


def test_the_reference_is_frozen_and_a_model_by_name_is_not(make_agent, make_model) -> None:
    agent = make_agent(make_model())
    assert not any(p.requires_grad for p in agent.ref_policy.parameters())
    assert len(agent.trained_parameters) == len(list(agent.policy.parameters()))


# --- Precision of the weights


def quantized(model):
    """As transformers marks what it loaded from a GGUF file: ``float()`` is an error."""
    model.is_quantized = True
    with pytest.raises(ValueError, match="not supported"):
        model.float()
    return model


def test_a_model_from_a_gguf_file_in_float32_is_trained(make_model, make_agent) -> None:
    agent = make_agent(quantized(make_model())).learn(1)
    assert len(agent.history) == 1


def test_a_model_that_cannot_be_cast_is_refused_with_the_reason(make_model, make_agent) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*dtype=torch\.float32"):
        make_agent(quantized(make_model().bfloat16()))


# --- The process


def test_an_agent_changes_no_setting_of_the_c_library(make_model, make_agent, monkeypatch) -> None:
    def load(*arguments, **keywords):
        raise AssertionError("a C library was loaded")

    monkeypatch.setattr(ctypes, "CDLL", load)
    make_agent(make_model())
