"""Quantised policies: their packed weights are neither moved, cast nor changed.

``Int8Linear`` is a quantised layer as libraries write them: it holds integers, and computes with
the numbers that they stand for. A real one, of bitsandbytes, is tested where that is installed.
"""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from textgym.agents import PPO
from textgym.agents.checkpoint import read_checkpoint
from textgym.errors import InvalidArgumentError
from textgym.models.placement import is_quantized

pytest.importorskip("peft")

LORA = {"target_modules": ["q_proj", "v_proj"]}
IDS = torch.tensor([[2, 3, 4, 5]])


class Int8Linear(torch.nn.Linear):
    """A linear layer with its weights in 8 bits."""

    def __init__(self, layer, has_gradient):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale = layer.weight.detach().abs().max() / 127
        packed = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = None
        self.has_gradient = has_gradient

    def forward(self, x):
        y = torch.nn.functional.linear(x, self.weight * self.scale)
        return y if self.has_gradient else y.detach()


def quantized(model, has_gradient=True):
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if type(child) is torch.nn.Linear:
                    setattr(part, name, Int8Linear(child, has_gradient))
    model.is_quantized = True
    return model.requires_grad_(False)


@pytest.fixture
def make_agent(make_vector_env, tmp_path):
    def make(policy, **settings):
        shared = {"episodes_per_iteration": 4, "learning_rate": 1e-2, "lora": LORA}
        return PPO(policy, make_vector_env(2), log_dir=tmp_path / "logs", **{**shared, **settings})

    return make


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_marks_alone_do_not_make_a_model_quantized(make_model):
    plain, packed = make_model(), quantized(make_model())
    plain.is_quantized = True  # as a file of packed weights is marked that was loaded as float32
    assert is_quantized(packed)
    assert not is_quantized(plain)
    assert not is_quantized(make_model().bfloat16())


def test_adapters_learn_on_weights_that_stay_as_they_are(make_agent, make_model):
    model = quantized(make_model())
    before = copy.deepcopy(model.state_dict())
    agent = make_agent(model)
    first = logits_of(model)
    agent.learn(20)
    after = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in agent.policy.model.state_dict().items()
        if "lora_" not in name
    }
    for state in (after, model.state_dict()):
        assert all(torch.equal(state[name], before[name]) for name in before)
        assert all(state[name].dtype == before[name].dtype for name in before)
    assert not torch.allclose(logits_of(agent.policy.model), first)
    ref_logits, _ = agent.ref_policy(IDS, torch.ones_like(IDS, dtype=torch.bool))
    torch.testing.assert_close(ref_logits, first)


def test_without_adapters_it_is_refused(make_agent, make_model):
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*quantised.*pass lora=True"):
        make_agent(quantized(make_model()), lora=None)


def test_a_kernel_without_gradients_is_refused(make_agent, make_model):
    with pytest.raises(InvalidArgumentError, match=r"^policy=.*no gradients on cpu"):
        make_agent(quantized(make_model(), has_gradient=False))


def test_it_is_not_moved_to_another_device(make_agent, make_model):
    policy = make_agent(quantized(make_model())).policy
    with pytest.raises(InvalidArgumentError, match=r"^device='meta'.*stays on cpu"):
        policy.place("meta")


def test_a_checkpoint_holds_adapters_and_continues_on_the_same_model(
    make_agent, make_model, make_vector_env, tmp_path
):
    model = quantized(make_model())
    agent = make_agent(model)
    agent.learn(10)
    agent.save(tmp_path / "agent")
    contents = read_checkpoint(tmp_path / "agent", "PPO")
    assert set(contents["policy"]) == set(agent.trained_parameters)
    resumed = PPO.load(tmp_path / "agent", make_vector_env(2), policy=model)
    for one in (agent, resumed):
        one.learn(10)
    assert torch.equal(logits_of(resumed.policy.model), logits_of(agent.policy.model))
    with pytest.raises(InvalidArgumentError, match=r"^policy=None.*pass the quantised model"):
        PPO.load(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match="belong to other weights"):
        PPO.load(tmp_path / "agent", policy=quantized(make_model(seed=5)))


def test_a_checkpoint_that_holds_its_model_takes_no_other(make_agent, make_model, tmp_path):
    make_agent(make_model()).save(tmp_path / "agent")
    with pytest.raises(InvalidArgumentError, match=r"^policy='Qwen3.*leave the argument out"):
        PPO.load(tmp_path / "agent", policy=make_model())


def test_adapters_are_exported_alone(make_agent, make_model, tmp_path):
    from peft import PeftModel

    model = quantized(make_model())
    agent = make_agent(model)
    agent.learn(10)
    with pytest.raises(InvalidArgumentError, match=r"^merge=True.*merge=False"):
        agent.save_pretrained(tmp_path / "merged")
    agent.save_pretrained(tmp_path / "adapters", merge=False)
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapters")
    torch.testing.assert_close(logits_of(loaded), logits_of(agent.policy.model))


def test_the_critic_is_no_copy_of_a_quantized_reward_model(
    tiny, reward_model, language_model, tmp_path
):
    from textgym.models import RewardModel

    model = quantized(copy.deepcopy(reward_model.model))
    env = gym.make_vec(
        "ABC-RLHF-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED,
        **{**tiny, "reward_model": RewardModel(model, tiny["tokenizer"])},
    )  # fmt: skip
    arguments = {"episodes_per_iteration": 4, "log_dir": tmp_path}
    with pytest.raises(InvalidArgumentError, match=r"^reward_model=.*another critic"):
        PPO(language_model, env, critic="separate", **arguments)
    PPO(language_model, env, critic="reward-model", **arguments).learn(1)


def test_eight_bits_of_bitsandbytes_pay_and_learn(tiny, language_model, reward_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    eight_bits = {
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
        "device_map": {"": "cpu"},
    }
    language_model.save_pretrained(tmp_path / "policy")
    reward_model.model.save_pretrained(tmp_path / "reward_model")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", **eight_bits)
    judge = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward_model", **eight_bits
    )
    assert is_quantized(policy)
    assert is_quantized(judge)
    env = gym.make_vec(
        "ABC-RLHF-v0", num_envs=4, autoreset_mode=AutoresetMode.DISABLED,
        **{**tiny, "reward_model": judge},
    )  # fmt: skip
    agent = PPO(
        policy, env, lora=LORA, episodes_per_iteration=4, learning_rate=1e-2, log_dir=tmp_path
    )
    agent.learn(60)
    assert np.isfinite(list(agent.history[-1].values())).all()
    assert agent.history[-1]["rollout/kl_exact"] > 0
