"""LanguageModelPolicy where the observation names an illegal token."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback

from textgym.agents.distribution import ActionRules, action_logprobs
from textgym.agents.sb3 import HindsightCreditCallback, LanguageModelPolicy, TextVecEnv
from textgym.agents.sb3.maskable import MaskableLanguageModelPolicy
from textgym.wrappers import IllegalToken, vector

EOS, MIN_NEW_TOKENS = 2, 4


def make_agent(env, model, algorithm=PPO, policy=LanguageModelPolicy, **policy_kwargs):
    keywords = {} if algorithm is A2C else {"batch_size": 8, "n_epochs": 2}
    return algorithm(
        policy, env, n_steps=16, learning_rate=1e-3, gamma=1.0, device="cpu", seed=0,
        policy_kwargs={"model": model, **policy_kwargs}, **keywords,
    )  # fmt: skip


@pytest.fixture
def model(language_model):
    """A model that would nearly always end the text at once."""
    with torch.no_grad():
        language_model.lm_head.weight[EOS] = 3.0 * torch.ones(language_model.config.hidden_size)
        for layer in language_model.model.layers:  # the hidden state has a positive mean
            layer.mlp.down_proj.weight.abs_()
        language_model.model.norm.weight.fill_(1.0)
        language_model.model.embed_tokens.weight.abs_()
    return language_model


@pytest.fixture
def env(make_text_envs):
    return TextVecEnv(vector.IllegalToken(make_text_envs(3, min_new_tokens=MIN_NEW_TOKENS)))


@pytest.fixture
def observations(env):
    """Three texts; EOS is illegal in the first two."""
    env.seed(3)
    env.set_options({"max_new_tokens": 9})
    env.reset()
    for _ in range(MIN_NEW_TOKENS):
        observations = env.step(np.array([9, 10, 11]))[0]
    assert (observations["illegal_token"] == -1).all()
    observations["illegal_token"][:2] = EOS
    return observations


def own_logits(model, observations):
    """The model's logits after each text, read alone."""
    rows = []
    for ids, mask in zip(observations["input_ids"], observations["attention_mask"], strict=True):
        text = torch.from_numpy(ids[mask.astype(bool)])[None]
        rows.append(model(input_ids=text).logits[0, -1])
    return torch.stack(rows)


def test_the_distribution_is_the_models_own_over_the_legal_tokens(model, env, observations):
    agent = make_agent(env, model, temperature=2.0)
    obs, _ = agent.policy.obs_to_tensor(observations)
    got = agent.policy.get_distribution(obs).distribution.probs
    expected = (own_logits(model, observations) / 2).softmax(dim=1)
    expected[:2, EOS] = 0
    expected /= expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_logprobs_entropies_and_their_gradients_are_those_of_that_distribution(
    model, env, observations
):
    agent = make_agent(env, model)
    actions, weights = torch.tensor([5, 6, EOS]), torch.tensor([1.0, -2.0, 0.5])
    # As PPO's minibatches have them: float32, from the rollout buffer.
    obs = {key: torch.as_tensor(value).float() for key, value in observations.items()}
    _, logprobs, entropy = agent.policy.evaluate_actions(obs, actions)
    (weights @ logprobs + weights.flip(0) @ entropy).backward()

    logits = own_logits(model, observations)
    rules = ActionRules(len(logits[0]), EOS, min_new_tokens=1)
    expected, expected_entropy = action_logprobs(logits, actions, torch.tensor([0, 0, 1]), rules)
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-4, rtol=1e-4)
    model.zero_grad()
    (weights @ expected + weights.flip(0) @ expected_entropy).backward()
    for got, want in zip(agent.policy.network.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-4, rtol=1e-3)


class Rollouts(BaseCallback):
    """Keeps the tokens, where EOS was illegal, and PPO's probability ratios before the update."""

    def _on_training_start(self):
        self.tokens, self.is_illegal, self.ratios = [], [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        self.tokens.append(buffer.actions[..., 0].copy())
        self.is_illegal.append(buffer.observations["illegal_token"][..., 0] == EOS)
        if isinstance(self.model, MaskablePPO):
            return
        for batch in buffer.get():
            _, logprobs, _ = self.model.policy.evaluate_actions(
                batch.observations, batch.actions.long().flatten()
            )
            self.ratios.append((logprobs - batch.old_log_prob).detach().exp())


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_training_never_chooses_an_illegal_token(model, env, algorithm):
    agent, rollouts = make_agent(env, model, algorithm), Rollouts()
    agent.ent_coef = 0.01  # so that the gradient of the entropy counts
    before = {name: weight.clone() for name, weight in agent.policy.state_dict().items()}
    agent.learn(2 * 48, callback=[HindsightCreditCallback(), rollouts])
    tokens, is_illegal = np.stack(rollouts.tokens), np.stack(rollouts.is_illegal)
    assert (tokens[0][~is_illegal[0]] == EOS).mean() > 0.5  # it would if it could
    assert not (tokens[is_illegal] == EOS).any()
    ratios = torch.cat(rollouts.ratios)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), atol=1e-4, rtol=0)
    after = agent.policy.state_dict()
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_masks_of_maskable_ppo_may_come_on_top(model, make_text_envs):
    envs = make_text_envs(2, min_new_tokens=MIN_NEW_TOKENS)
    env = TextVecEnv(vector.ActionMask(vector.IllegalToken(envs)))
    agent = make_agent(env, model, MaskablePPO, MaskableLanguageModelPolicy)
    rollouts = Rollouts()
    agent.learn(2 * 32, callback=rollouts)
    tokens, is_illegal = np.stack(rollouts.tokens), np.stack(rollouts.is_illegal)
    assert not (tokens[is_illegal] == EOS).any()
    assert all(torch.isfinite(weight).all() for weight in agent.policy.state_dict().values())


@pytest.mark.parametrize("deterministic", [False, True])
def test_predictions_are_legal(model, tiny, deterministic):
    env = IllegalToken(gym.make("ABC-RLHF-v0", **{**tiny, "min_new_tokens": MIN_NEW_TOKENS}))
    agent = make_agent(env, model)
    observation, _ = env.reset(seed=0)
    tokens, terminated = [], False
    while not terminated:
        token, _ = agent.predict(observation, deterministic=deterministic)
        observation, _, terminated, _, _ = env.step(token)
        tokens.append(int(token))
    assert EOS not in tokens[:MIN_NEW_TOKENS]
    if deterministic:
        assert tokens[MIN_NEW_TOKENS:] == [EOS]


def test_a_saved_agent_still_knows_illegal_tokens(tmp_path, language_model, env, observations):
    agent = make_agent(env, language_model)
    agent.learn(48)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=env, device="cpu")
    obs, _ = agent.policy.obs_to_tensor(observations)
    ours, theirs = (one.policy.get_distribution(obs).distribution.probs for one in (agent, loaded))
    assert torch.equal(ours, theirs)
    assert ours[:, EOS].eq(0).tolist() == [True, True, False]


def test_an_observation_without_the_key_is_an_error(language_model, env, observations):
    agent = make_agent(env, language_model)
    del observations["illegal_token"]
    with pytest.raises(KeyError, match="illegal_token"):
        agent.predict(observations)
