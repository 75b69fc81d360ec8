from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from peft import LoraConfig
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3ForCausalLM

from tests.conftest import tiny_config
from textgym.agents.sb3 import HindsightCreditCallback, LanguageModelPolicy, TextVecEnv
from textgym.agents.sb3.maskable import MaskableLanguageModelPolicy
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.wrappers.vector import ActionMask


def make_agent(env, model, algorithm=PPO, policy=LanguageModelPolicy, n_steps=8, **policy_kwargs):
    keywords = {} if algorithm is A2C else {"batch_size": 8, "n_epochs": 2}
    return algorithm(
        policy, env, n_steps=n_steps, learning_rate=1e-3, gamma=1.0, device="cpu", seed=0,
        policy_kwargs={"model": model, **policy_kwargs}, **keywords,
    )  # fmt: skip


@pytest.fixture
def env(make_text_vec_env):
    return make_text_vec_env(3)


@pytest.fixture
def observations(env):
    """Three texts of different lengths."""
    env.seed(3)
    env.reset()
    return env.step(np.array([9, 10, 11]))[0]


def logits_of(policy, observations):
    return policy.get_distribution(policy.obs_to_tensor(observations)[0]).distribution.logits


def plain_logprobs(model, observations):
    """The model on each text alone, without padding."""
    rows = []
    for ids, mask in zip(observations["input_ids"], observations["attention_mask"], strict=True):
        text = torch.from_numpy(ids[mask.astype(bool)])[None]
        with torch.no_grad():
            rows.append(model(input_ids=text).logits[0, -1].log_softmax(dim=-1))
    return torch.stack(rows)


@pytest.fixture
def gpt2(tokenizer):
    """Learned positions, tied embeddings, and dropout."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2,
        initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_the_distribution_is_the_models_own(architecture, language_model, gpt2, env, observations):
    model = gpt2 if architecture == "gpt2" else language_model
    policy = make_agent(env, model).policy
    assert len(set(observations["attention_mask"].sum(axis=1))) > 1
    got = logits_of(policy, observations)
    torch.testing.assert_close(got, plain_logprobs(model, observations), atol=1e-4, rtol=1e-4)


def test_temperature_divides_the_logits(language_model, env, observations):
    policy = make_agent(env, language_model, temperature=2.0).policy
    expected = (plain_logprobs(language_model, observations) / 2).log_softmax(dim=-1)
    torch.testing.assert_close(logits_of(policy, observations), expected, atol=1e-4, rtol=1e-4)


def test_tokens_beyond_the_action_space_have_no_probability(tokenizer, env, observations):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config(tokenizer, vocab_size=len(tokenizer) + 12))
    policy = make_agent(env, model).policy
    got = logits_of(policy, observations)
    assert got.shape == (3, len(tokenizer))
    expected = plain_logprobs(model.eval(), observations)[:, : len(tokenizer)].log_softmax(dim=-1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_first_probability_ratio_is_one(gpt2, env):
    class Probe(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer, policy = self.model.rollout_buffer, self.model.policy
            policy.set_training_mode(True)  # as train does; GPT-2 would start its dropout
            samples = next(buffer.get())
            _, logprobs, entropy = policy.evaluate_actions(
                samples.observations, samples.actions.long().flatten()
            )
            self.ratio = (logprobs - samples.old_log_prob).exp()
            self.entropy = entropy

    probe = Probe()
    make_agent(env, gpt2).learn(24, callback=probe)
    assert probe.ratio.shape == (24,)
    torch.testing.assert_close(probe.ratio, torch.ones(24), atol=1e-4, rtol=0)
    assert (probe.entropy > 0).all()


def test_mixed_precision_computes_in_bfloat16_and_trains_float32(language_model, env, observations):
    agent = make_agent(env, language_model, dtype="bfloat16")
    got, expected = (
        logits_of(agent.policy, observations),
        plain_logprobs(language_model, observations),
    )
    assert 1e-4 < (got - expected).abs().max() < 0.1  # eight bits, and not 24
    before = agent.policy.network.model.lm_head.weight.clone()
    agent.learn(24)
    after = agent.policy.network.model.lm_head.weight
    assert after.dtype == torch.float32
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", ["float16", "float32", 16])
def test_other_dtypes_are_refused(language_model, env, dtype):
    with pytest.raises(InvalidArgumentError, match=f"^dtype={dtype!r}"):
        make_agent(env, language_model, dtype=dtype)


def test_values_start_at_zero(language_model, env, observations):
    policy = make_agent(env, language_model).policy
    values = policy.predict_values(policy.obs_to_tensor(observations)[0])
    assert values.tolist() == [[0.0], [0.0], [0.0]]


def test_gradient_reaches_every_weight_of_the_language_model(language_model, env, observations):
    policy = make_agent(env, language_model).policy
    obs, _ = policy.obs_to_tensor(observations)
    _, logprobs, _ = policy.evaluate_actions(obs, torch.tensor([4, 5, 6]))
    logprobs.sum().backward()
    for name, weight in policy.network.model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_training_moves_the_copy_and_not_the_model(language_model, env, algorithm):
    before = {name: weight.clone() for name, weight in language_model.state_dict().items()}
    agent = make_agent(env, language_model, algorithm)
    agent.learn(48, callback=HindsightCreditCallback())
    after = agent.policy.network.model.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2
    for name, weight in language_model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_rewarded_token_becomes_more_probable(language_model, tiny):
    class Pays(gym.RewardWrapper):
        def step(self, action):
            observation, _, terminated, truncated, info = self.env.step(action)
            return observation, float(action < 170), terminated, truncated, info

    env = Pays(gym.make("ABC-RLHF-v0", **tiny))
    agent = PPO(
        LanguageModelPolicy, env, n_steps=64, batch_size=32, n_epochs=4, learning_rate=1e-2,
        gamma=0.0, gae_lambda=0.0, device="cpu", seed=0, policy_kwargs={"model": language_model},
    )  # fmt: skip
    observation, _ = env.reset(seed=0)
    before = logits_of(agent.policy, observation).exp()[0, :170].sum().item()
    agent.learn(64 * 7)
    after = logits_of(agent.policy, observation).exp()[0, :170].sum().item()
    assert before < 0.7
    assert after > 0.9


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_saved_agent_predicts_the_same(
    tmp_path, language_model, env, observations, algorithm, lora
):
    agent = make_agent(env, language_model, algorithm, lora=lora)
    agent.learn(24)
    agent.save(tmp_path / "agent.zip")
    loaded = algorithm.load(tmp_path / "agent.zip", env=env, device="cpu")
    ours, theirs = (logits_of(one.policy, observations) for one in (agent, loaded))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    obs, _ = agent.policy.obs_to_tensor(observations)
    assert torch.equal(agent.policy.predict_values(obs), loaded.policy.predict_values(obs))
    loaded.learn(24)


def test_a_saved_policy_predicts_the_same(tmp_path, language_model, env, observations):
    policy = make_agent(env, language_model, temperature=0.5).policy
    policy.save(tmp_path / "policy.pt")
    loaded = LanguageModelPolicy.load(tmp_path / "policy.pt", device="cpu")
    torch.testing.assert_close(logits_of(policy, observations), logits_of(loaded, observations))


def test_predictions_of_one_text_and_of_several(language_model, env, observations):
    agent = make_agent(env, language_model)
    actions, state = agent.predict(observations, deterministic=True)
    assert actions.shape == (3,)
    assert state is None
    assert actions.tolist() == plain_logprobs(language_model, observations).argmax(dim=1).tolist()
    for row in range(3):
        one = {name: values[row] for name, values in observations.items()}
        action, _ = agent.predict(one, deterministic=True)
        assert action.shape == ()
        assert action == actions[row]
        assert env.action_space.contains(agent.predict(one)[0])


def test_small_steps_are_not_lost_in_rounding(language_model, env):
    """Transformers loads a model in the dtype of its file, which is bfloat16 for most."""
    agent = make_agent(env, language_model.to(torch.bfloat16))
    agent.learning_rate = agent.lr_schedule = lambda _: 1e-6
    before = agent.policy.network.model.lm_head.weight.detach().clone()
    agent.learn(24)
    step = agent.policy.network.model.lm_head.weight.detach() - before
    # In bfloat16 nearly all of the entries, of about 0.05, would stay where they are.
    assert (step != 0).float().mean() > 0.5
    assert {weight.dtype for weight in language_model.parameters()} == {torch.bfloat16}


def test_adapters_start_at_the_model_and_train_alone(language_model, env, observations):
    agent = make_agent(env, language_model, lora=LoraConfig(r=2, target_modules=["q_proj"]))
    torch.testing.assert_close(
        logits_of(agent.policy, observations),
        plain_logprobs(language_model, observations),
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    before = {name: weight.clone() for name, weight in agent.policy.named_parameters()}
    agent.learn(48)
    for name, weight in agent.policy.named_parameters():
        is_trained = "lora_" in name or "value_head" in name
        assert torch.equal(weight, before[name]) != is_trained, name
    optimized = sum(len(group["params"]) for group in agent.policy.optimizer.param_groups)
    assert optimized == 2 * 2 + 2  # two layers with an A and a B, and the value head


def test_adapters_without_peft_name_the_extra(language_model, env, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"textgym\[lora\]"):
        make_agent(env, language_model, lora=True)


def test_without_adapters_the_model_itself_is_trained(language_model, env):
    agent = make_agent(env, language_model, lora=None)
    assert all(one.requires_grad for one in agent.policy.network.model.parameters())
    assert not any("lora_" in name for name, _ in agent.policy.named_parameters())


def test_adamw_has_no_weight_decay_unless_it_is_asked_for(language_model, env):
    for kwargs, decay in [({"eps": 1e-5}, 0.0), ({"weight_decay": 0.1}, 0.1)]:
        agent = make_agent(env, language_model, optimizer_kwargs=kwargs)
        (group,) = agent.policy.optimizer.param_groups
        assert group["weight_decay"] == decay
        assert kwargs.items() <= group.items()


@pytest.mark.parametrize("name", ["activation_fn", "net_arch", "temprature"])
def test_settings_of_other_networks_are_refused(language_model, env, name):
    with pytest.raises(InvalidArgumentError, match=f"^{name}=.*temperature"):
        make_agent(env, language_model, **{name: [8]})


PISSA = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights="pissa")


@pytest.mark.parametrize("lora", ["yes", LoraConfig(target_modules=["no_such_layer"]), PISSA])
def test_adapters_that_do_not_fit_are_refused(language_model, env, lora):
    with pytest.raises(InvalidArgumentError, match="lora"):
        make_agent(env, language_model, lora=lora)


def test_masked_tokens_are_never_chosen(language_model, make_text_envs):
    env = TextVecEnv(ActionMask(make_text_envs(2, min_new_tokens=4)))
    eos = env.env.unwrapped.tokenizer.eos_token_id
    model = Qwen3ForCausalLM(language_model.config)
    model.load_state_dict(language_model.state_dict())
    with torch.no_grad():  # a model that would nearly always end the text
        model.lm_head.weight[eos] = 0
        embedding = model.model.norm.weight.new_ones(model.config.hidden_size)
        model.lm_head.weight[eos] += 3 * embedding
    agent = make_agent(env, model, MaskablePPO, MaskableLanguageModelPolicy, n_steps=16)
    agent.learn(32, callback=HindsightCreditCallback())
    buffer = agent.rollout_buffer
    masks = buffer.action_masks.reshape(32, -1)
    assert (masks[:, eos] == 0).any()
    chosen = masks[np.arange(32), buffer.actions.reshape(32).astype(int)]
    assert (chosen == 1).all()


def test_other_observations_and_actions_are_refused(language_model, make_credit_env, env):
    with pytest.raises(InvalidArgumentError, match="input_ids"):
        make_agent(make_credit_env(), language_model)
    boxes = env.observation_space
    with pytest.raises(InvalidArgumentError, match="token ids"):
        LanguageModelPolicy(boxes, gym.spaces.Box(0, 1, (1,)), lambda _: 1e-3)
    with pytest.raises(InvalidArgumentError, match="temperature"):
        make_agent(env, language_model, temperature=0.0)


def test_a_model_that_knows_too_few_tokens_is_refused(tokenizer, env):
    model = Qwen3ForCausalLM(tiny_config(tokenizer, vocab_size=100))
    with pytest.raises(InvalidArgumentError, match="tokens"):
        make_agent(env, model)


def test_textgym_and_its_agents_do_not_import_stable_baselines3():
    code = "import sys, textgym, textgym.agents; print('stable_baselines3' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
