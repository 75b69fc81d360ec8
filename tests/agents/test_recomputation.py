"""Gradient checkpointing changes what an update stores, and nothing that it computes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from textgym.agents import GRPO, PPO, RLOO
from textgym.agents.lora import add_lora
from textgym.agents.policy import LanguageModelPolicy
from textgym.errors import InvalidArgumentError

IDS = torch.tensor([[0, 9, 4, 3, 6, 2], [5, 6, 7, 8, 2, 0]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
TEXTS = IDS, MASK, MASK[:, 2:]


@pytest.fixture
def make_policy(make_model):
    def make(architecture="qwen3", lora=None, **settings):
        model = make_model(architecture)
        if lora is not None:
            pytest.importorskip("peft")
            torch.manual_seed(0)
            add_lora(model, lora)
        policy = LanguageModelPolicy(model, **settings)
        nn.init.ones_(policy.value_head.weight)
        return policy

    return make


@pytest.fixture
def calls_of_layers(monkeypatch):
    """Counts how often each layer's arithmetic runs, by its attention."""

    def count(policy):
        calls = Counter()
        for name, module in policy.model.named_modules():
            if name.endswith(("self_attn", "attn")):
                module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
        return calls

    return count


def gradients(policy):
    numbers = policy.evaluate(*TEXTS)
    (numbers.logprobs + 0.3 * numbers.entropy + 0.1 * numbers.values).sum().backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft corrects it for GPT-2
@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])  # gpt2 has dropout, which stays off
def test_gradients_are_those_of_the_plain_update(make_policy, architecture, dtype, lora):
    plain = make_policy(architecture, lora, autocast_dtype=dtype)
    sparing = make_policy(architecture, lora, autocast_dtype=dtype, gradient_checkpointing=True)
    expected, computed = gradients(plain), gradients(sparing)
    assert list(computed) == list(expected)
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())
    for name, gradient in computed.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


def test_fewer_tensors_are_stored(make_policy):
    def stored(policy):
        numbers = 0

        def pack(tensor):
            nonlocal numbers
            if not isinstance(tensor, nn.Parameter):
                numbers += tensor.numel()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.evaluate(*TEXTS)
        return numbers

    plain, sparing = make_policy(), make_policy(gradient_checkpointing=True)
    assert stored(sparing) < 0.5 * stored(plain)


def test_layers_are_computed_twice_in_an_update_and_once_without_gradients(
    make_policy, calls_of_layers
):
    policy = make_policy(gradient_checkpointing=True)
    calls = calls_of_layers(policy)
    with torch.no_grad():
        policy.evaluate(*TEXTS)
    assert set(calls.values()) == {1}
    assert len(calls) == 2
    calls.clear()
    gradients(policy)
    assert set(calls.values()) == {2}


def test_layers_are_computed_again_with_the_kernel_of_the_first_time(make_policy, monkeypatch):
    import textgym.models.kernels as kernels

    policy = make_policy(autocast_dtype=torch.bfloat16, gradient_checkpointing=True)
    seen = []
    original = kernels.sdpa_attention_forward

    def recorded(module, query, *arguments, **keywords):
        seen.append(query.dtype)
        return original(module, query, *arguments, **keywords)

    monkeypatch.setattr(kernels, "sdpa_attention_forward", recorded)
    gradients(policy)
    assert len(seen) == 4  # two layers, twice; the library's own kernel would not be recorded
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("agent_class", [PPO, RLOO, GRPO])
def test_an_agent_learns_the_same(agent_class, make_model, make_vector_env, tmp_path):
    def trained(**settings):
        agent = agent_class(
            make_model(),
            make_vector_env(2),
            episodes_per_iteration=4,
            minibatch_size=4,
            learning_rate=1e-2,
            log_dir=tmp_path,
            **settings,
        )
        return agent.learn(60).policy

    plain, sparing = trained(), trained(gradient_checkpointing=True)
    for name, weights in plain.state_dict().items():
        torch.testing.assert_close(sparing.state_dict()[name], weights, rtol=0, atol=0)


def test_rollouts_keep_their_cache_and_their_fast_decode_step(make_policy):
    plain, sparing = make_policy(), make_policy(gradient_checkpointing=True)
    gradients(sparing)  # An update leaves nothing behind on the model.
    with plain.reading() as one, sparing.reading() as other:
        for text in ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8, 9]):
            torch.testing.assert_close(
                other.read([text]).logits, one.read([text]).logits, rtol=0, atol=0
            )
        assert other.is_lean
    assert not any("forward" in vars(module) for module in sparing.modules())


def test_a_forward_that_was_attached_to_a_layer_is_kept(make_policy):
    policy = make_policy(gradient_checkpointing=True)
    layer = policy.model.model.layers[0]
    own = layer.forward
    layer.forward = own
    gradients(policy)
    assert vars(layer)["forward"] is own


def test_a_model_without_layers_to_recompute_is_refused(make_model):
    class Other(nn.Module):
        config = None

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 20)

    from textgym.agents.recomputation import Recomputation

    with pytest.raises(InvalidArgumentError, match=r"gradient_checkpointing.*Other.*use False"):
        Recomputation(Other(), None)


def test_the_choice_is_true_or_false():
    from textgym.agents import PPOConfig

    with pytest.raises(InvalidArgumentError, match=r"gradient_checkpointing.*True or False"):
        PPOConfig(gradient_checkpointing="yes")
