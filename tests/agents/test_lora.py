"""The bundled agents train low-rank adapters; what is below them stays as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from textgym.agents import GRPO, PPO, RLOO
from textgym.agents.checkpoint import read_checkpoint
from textgym.errors import InvalidArgumentError

pytest.importorskip("peft")

from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from textgym.agents.lora import lora_as_text
from textgym.agents.policy import LanguageModelPolicy

IDS = torch.tensor([[2, 3, 4, 5]])
TARGETS = {"target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def folder(make_model, tmp_path):
    """A language model on disk."""
    folder = tmp_path / "model"
    make_model(seed=2).save_pretrained(folder)
    return folder


@pytest.fixture
def make_agent(make_vector_env, tmp_path):
    def make(policy, agent_class=PPO, **settings):
        shared = {"episodes_per_iteration": 4, "minibatch_size": 4, "learning_rate": 1e-2}
        settings = shared | {"lora": TARGETS} | settings
        return agent_class(policy, make_vector_env(2), log_dir=tmp_path / "logs", **settings)

    return make


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("agent_class", [PPO, RLOO, GRPO])
def test_only_adapters_and_the_value_head_are_trained(agent_class, make_agent, make_model):
    model = make_model()
    agent = make_agent(model, agent_class)
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(60)
    changed = {
        name for name, tensor in agent.policy.state_dict().items() if (tensor != before[name]).any()
    }
    assert any("lora_B" in name for name in changed)
    assert all("lora_" in name or name.startswith("value_head") for name in changed)
    assert set(agent.trained_parameters) >= changed


def test_the_reference_is_the_policy_with_its_adapters_off_and_not_a_copy(make_agent, make_model):
    model = make_model()
    agent = make_agent(model)
    first = logits_of(model)
    agent.learn(10)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    ref_logits, _ = agent.ref_policy(IDS, mask)
    torch.testing.assert_close(ref_logits, first)
    logits, _ = agent.policy(IDS, mask)
    assert not torch.allclose(logits, first)
    assert agent.ref_policy.model is agent.policy.model
    with agent.ref_policy.reading() as reader:
        torch.testing.assert_close(reader.read([IDS[0].tolist()]).logits, first[:, -1])
    assert all(p.requires_grad for p in agent.trained_parameters.values())


def test_adapters_start_from_the_agents_seed_alone(make_agent, make_model):
    model = make_model()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make_agent(model, seed=3).trained_parameters
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = make_agent(model, seed=3).trained_parameters
    other = make_agent(model, seed=4).trained_parameters
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_checkpoint_holds_the_adapters_and_continues_exactly(make_agent, folder, tmp_path):
    unbroken = make_agent(folder)
    unbroken.learn(10)
    unbroken.save(tmp_path / "agent")
    contents = read_checkpoint(tmp_path / "agent", "PPO")
    assert set(contents["policy"]) == set(unbroken.trained_parameters)
    assert "ref_policy" not in contents
    resumed = PPO.load(tmp_path / "agent", unbroken.env, log_dir=tmp_path / "again")
    for agent in (unbroken, resumed):
        agent.learn(10)
    for name, parameter in unbroken.policy.state_dict().items():
        assert torch.equal(parameter, resumed.policy.state_dict()[name])
    assert unbroken.history[-1]["rollout/kl"] == resumed.history[-1]["rollout/kl"]


def test_a_checkpoint_of_a_loaded_model_needs_nothing_else(make_agent, make_model, tmp_path):
    agent = make_agent(make_model())
    agent.learn(10)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent")
    assert torch.equal(logits_of(again.policy.model), logits_of(agent.policy.model))


def test_a_loaded_model_in_bfloat16_is_gone_on_with_exactly(make_agent, make_model, tmp_path):
    """Restored in float32, its layers would round otherwise than those that were trained on."""
    unbroken = make_agent(make_model("gpt2").to(torch.bfloat16), lora=True)
    unbroken.learn(10)
    unbroken.save(tmp_path / "agent")
    resumed = PPO.load(tmp_path / "agent", unbroken.env, log_dir=tmp_path / "again")
    for agent in (unbroken, resumed):
        agent.learn(10)
    for name, tensor in unbroken.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name])
        assert tensor.dtype == resumed.policy.state_dict()[name].dtype


def test_nothing_is_trained_that_stays_without_the_adapters(make_agent, make_model):
    """With biases trained, the reference policy would move with the policy."""
    lora = {"target_modules": ["c_attn"], "bias": "all"}
    with pytest.raises(InvalidArgumentError, match=r"^lora=.*reference policy.*bias"):
        make_agent(make_model("gpt2"), lora=lora)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_begin_with_a_part_of_the_weights_are_refused(make_agent, make_model, init):
    """Without them, the reference policy would be the rest of the weights."""
    with pytest.raises(InvalidArgumentError, match=r"^lora=.*q_proj.*reference policy"):
        make_agent(make_model(), lora=TARGETS | {"r": 2, "init_lora_weights": init})


def test_adapters_are_not_put_on_other_weights(make_agent, make_model, folder, tmp_path):
    agent = make_agent(folder)
    agent.save(tmp_path / "agent")
    make_model(seed=9).save_pretrained(folder)
    with pytest.raises(InvalidArgumentError, match="belong to other weights"):
        PPO.load(tmp_path / "agent")


def test_the_model_below_them_is_found_from_another_folder(
    make_agent, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    make_agent(folder.name).save(tmp_path / "agent")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert PPO.load(tmp_path / "agent").base_model == str(folder)


def test_the_policy_is_exported_with_its_adapters_in_the_weights(make_agent, make_model, tmp_path):
    agent = make_agent(make_model())
    agent.learn(10)
    agent.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    torch.testing.assert_close(logits_of(loaded), logits_of(agent.policy.model))


OTHER_PARTS = [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 4]}]
"""What peft trains beside adapters, on request: whole modules, and rows of the embedding."""


@pytest.mark.parametrize("others", OTHER_PARTS)
def test_what_is_trained_beside_adapters_moves_and_the_reference_does_not(
    make_agent, make_model, others
):
    agent = make_agent(make_model(), lora=TARGETS | others)
    first = logits_of(make_model())
    names = [n for n in agent.trained_parameters if "lora_" not in n and "value_head" not in n]
    before = {n: agent.trained_parameters[n].detach().clone() for n in names}
    agent.learn(60)
    assert names
    assert all(not torch.equal(agent.trained_parameters[n], before[n]) for n in names)
    torch.testing.assert_close(
        agent.ref_policy(IDS, torch.ones_like(IDS, dtype=torch.bool))[0], first
    )


@pytest.mark.parametrize("others", OTHER_PARTS)
def test_what_is_trained_beside_adapters_is_exported(make_agent, make_model, tmp_path, others):
    agent = make_agent(make_model(), lora=TARGETS | others)
    agent.learn(30)
    agent.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(loaded), logits_of(agent.policy.model))


@pytest.mark.parametrize("end", ["wte", "lm_head"])
def test_adapters_on_one_end_of_tied_weights_are_exported(make_agent, make_model, tmp_path, end):
    agent = make_agent(make_model("gpt2"), lora={"target_modules": [end]})
    for name, parameter in agent.trained_parameters.items():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    agent.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits_of(loaded), logits_of(agent.policy.model), atol=1e-4, rtol=1e-4
    )


def test_adapters_alone_are_exported_for_peft(make_agent, make_model, folder, tmp_path):
    agent = make_agent(folder)
    agent.learn(10)
    agent.save_pretrained(tmp_path / "adapters", merge=False)
    base = AutoModelForCausalLM.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(logits_of(loaded), logits_of(agent.policy.model))


def test_a_policy_without_adapters_is_exported_too(make_agent, make_model, tmp_path):
    agent = make_agent(make_model(), lora=False)
    agent.learn(10)
    agent.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits_of(loaded), logits_of(agent.policy.model))


def test_small_steps_of_adapters_are_not_lost_in_rounding(make_agent, make_model):
    agent = make_agent(make_model().to(torch.bfloat16), learning_rate=1e-5)
    before = {n: p.detach().clone() for n, p in agent.policy.named_parameters() if "lora_A" in n}
    agent.learn(60)
    moved = [agent.trained_parameters[n].detach() - p for n, p in before.items()]
    # In bfloat16 nearly all of the entries, of about 0.3, would stay where they are.
    assert all((step != 0).float().mean() > 0.9 for step in moved)


def test_the_weights_below_adapters_keep_their_dtype(make_agent, make_model):
    agent = make_agent(make_model().to(torch.bfloat16))
    dtypes = {name: p.dtype for name, p in agent.policy.model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" not in name} == {torch.bfloat16}
    agent.learn(10)
    assert np.isfinite(agent.history[-1]["rollout/kl"])


def test_a_model_of_peft_is_a_policy_too(make_agent, make_model, tmp_path):
    """Its forward pass hides its arguments, positions among them, behind **kwargs."""
    model = make_model()
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(**TARGETS))
    ids, mask = torch.tensor([[0, 0, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1]]).bool()
    policies = [LanguageModelPolicy(one) for one in (model, wrapped)]
    plain, hidden = (policy(ids, mask, 1)[0] for policy in policies)
    torch.testing.assert_close(hidden, plain)
    with policies[1].reading() as reader:
        torch.testing.assert_close(reader.read([[3, 4, 5]]).logits, plain[:, 0])
    agent = make_agent(wrapped, lora=False)
    agent.learn(10)
    trained = {name for name in agent.trained_parameters if not name.startswith("value_head")}
    assert trained
    assert all("lora_" in name for name in trained)
    agent.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), logits_of(agent.policy.model))
    model.add_adapter(LoraConfig(**TARGETS))
    for one in (agent, make_agent(model, lora=False)):
        with pytest.raises(InvalidArgumentError, match=r"^policy=.*merge_and_unload"):
            one.save(tmp_path / "agent")


@pytest.mark.parametrize(
    ("lora", "text"),
    [
        (True, "{}"),
        ("true", "{}"),
        (False, None),
        (None, None),
        ({"r": 4}, '{"r": 4}'),
        ('{"r": 4}', '{"r": 4}'),
        ({"r": np.int64(4)}, '{"r": 4}'),
        (LoraConfig(r=4), '{"r": 4}'),
    ],
)
def test_adapters_are_chosen_in_any_form(lora, text):
    assert lora_as_text(lora) == text


@pytest.mark.parametrize(
    "lora",
    [
        "rank 4",
        3,
        {"rank": 4},
        {"r": torch.tensor(4)},
        {"target_modules": ["nowhere"]},
        IA3Config(),
    ],
)
def test_other_choices_are_refused(lora, make_agent, make_model):
    with pytest.raises(InvalidArgumentError, match="lora="):
        make_agent(make_model(), lora=lora)
