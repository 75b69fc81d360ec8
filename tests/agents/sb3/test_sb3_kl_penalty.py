from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from textgym.agents.sb3 import (
    HindsightCreditCallback,
    KLPenaltyCallback,
    LanguageModelPolicy,
    TextVecEnv,
)
from textgym.agents.sb3.maskable import MaskableLanguageModelPolicy
from textgym.errors import InvalidArgumentError
from textgym.wrappers.vector import ActionMask, IllegalToken

NUM_ENVS, NUM_STEPS, COEF = 3, 12, 0.3


class Probe(BaseCallback):
    """Keeps each rollout as it went into the update, and the policy's weights that sampled it."""

    def _on_training_start(self):
        self.rollouts = []

    def _on_rollout_start(self):
        model = self.model.policy.network.model
        self.weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        self.paid, self.dones = [], []

    def _on_step(self):
        self.paid.append(self.locals["rewards"].copy())
        self.dones.append(self.locals["dones"].copy())
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("rewards", "advantages", "returns", "actions", "observations", "episode_starts")
        rollout = {name: getattr(buffer, name).copy() for name in names}
        rollout |= {"paid": np.stack(self.paid), "dones": np.stack(self.dones)}
        rollout |= {"weights": self.weights, "kl": self.logger.name_to_value.get("rollout/kl")}
        last_values = self.model.policy.predict_values(
            self.model.policy.obs_to_tensor(self.model._last_obs)[0]
        )
        buffer.compute_returns_and_advantage(last_values.detach(), rollout["dones"][-1])
        rollout |= {"anew": buffer.advantages.copy(), "returns_anew": buffer.returns.copy()}
        self.rollouts.append(SimpleNamespace(**rollout))


def make_agent(env, model, algorithm=PPO, policy=LanguageModelPolicy, **policy_kwargs):
    keywords = {} if algorithm is A2C else {"batch_size": 12, "n_epochs": 2}
    return algorithm(
        policy, env, n_steps=NUM_STEPS, learning_rate=3e-3, gamma=0.95, gae_lambda=0.8,
        device="cpu", seed=0, policy_kwargs={"model": model, **policy_kwargs}, **keywords,
    )  # fmt: skip


def rollouts(agent, *callbacks, num_rollouts=3, **keywords):
    probe = Probe()
    timesteps = num_rollouts * NUM_STEPS * agent.n_envs
    agent.learn(timesteps, callback=[*callbacks, probe], **keywords)
    return probe.rollouts


def logprobs_by_hand(model, weights, rollout, eos=None, temperature=1.0):
    """Log-probability of each token, each text read alone; EOS is left out where it is illegal."""
    model = type(model)(model.config).eval()
    model.load_state_dict(weights)
    result = np.zeros((NUM_STEPS, rollout.actions.shape[1]))
    for at in np.ndindex(result.shape):
        ids, mask = (rollout.observations[key][at] for key in ("input_ids", "attention_mask"))
        with torch.no_grad():
            text = torch.from_numpy(ids[mask == 1]).long()[None]
            logits = model(input_ids=text).logits[0, -1].double() / temperature
        if eos is not None and rollout.observations["illegal_token"][at][0] == eos:
            logits[eos] = -torch.inf
        result[at] = logits.log_softmax(dim=0)[int(rollout.actions[at][0])].item()
    return result


@pytest.fixture
def env(make_text_envs):
    return TextVecEnv(IllegalToken(make_text_envs(NUM_ENVS, min_new_tokens=4)))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_each_token_pays_its_log_ratio(language_model, env, algorithm):
    agent = make_agent(env, language_model, algorithm, temperature=1.5)
    eos, reference = 2, language_model.state_dict()
    for index, rollout in enumerate(rollouts(agent, KLPenaltyCallback(COEF))):
        assert (rollout.observations["illegal_token"] == eos).any()
        logprobs, ref_logprobs = (
            logprobs_by_hand(language_model, weights, rollout, eos, temperature=1.5)
            for weights in (rollout.weights, reference)
        )
        kl = logprobs - ref_logprobs
        assert index == 0 or np.abs(kl).max() > 0.01
        np.testing.assert_allclose(rollout.rewards, rollout.paid - COEF * kl, atol=1e-5)
        np.testing.assert_allclose(rollout.advantages, rollout.anew, atol=1e-5)
        np.testing.assert_allclose(rollout.returns, rollout.returns_anew, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_nothing_is_paid_before_the_first_update(language_model, env, lora, dtype):
    agent = make_agent(env, language_model.to(dtype), lora=lora)
    agent.learning_rate = agent.lr_schedule = lambda _: 3e-2
    first, second = rollouts(agent, KLPenaltyCallback(COEF), num_rollouts=2)
    np.testing.assert_allclose(first.rewards, first.paid, atol=1e-6)
    assert first.kl == pytest.approx(0, abs=1e-5)
    assert np.abs(second.rewards - second.paid).max() > 0.01


def test_the_log_has_the_mean_over_whole_episodes(language_model, env):
    got = rollouts(make_agent(env, language_model), KLPenaltyCallback(1.0), num_rollouts=4)
    kl = np.concatenate([rollout.paid - rollout.rewards for rollout in got])
    dones = np.concatenate([rollout.dones for rollout in got])
    sums = [[] for _ in got]  # of the episodes that end in each rollout
    for row in range(NUM_ENVS):
        start = 0
        for end in np.flatnonzero(dones[:, row]):
            sums[end // NUM_STEPS].append(kl[start : end + 1, row].sum())
            start = end + 1
    assert all(not starts.all() for starts in (rollout.episode_starts[0] for rollout in got[1:]))
    np.testing.assert_allclose([rollout.kl for rollout in got], list(map(np.mean, sums)), atol=1e-5)


def test_episodes_that_a_new_training_cuts_off_are_not_counted(language_model, env):
    agent, callback = make_agent(env, language_model), KLPenaltyCallback(1.0)
    rollouts(agent, callback, num_rollouts=2)
    (first,) = rollouts(agent, callback, num_rollouts=1)
    kl = (first.paid - first.rewards).cumsum(axis=0)
    sums = []
    for row in range(NUM_ENVS):
        ends = np.flatnonzero(first.dones[:, row])
        sums += np.diff(kl[ends, row], prepend=0).tolist()
    assert first.kl == pytest.approx(np.mean(sums), abs=1e-5)


def test_with_credit_in_either_order(language_model, env):
    def run(*callbacks):
        return rollouts(make_agent(env, language_model), *callbacks, num_rollouts=3)

    one = run(HindsightCreditCallback(), KLPenaltyCallback(COEF))
    other = run(KLPenaltyCallback(COEF), HindsightCreditCallback())
    reference = language_model.state_dict()
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        np.testing.assert_allclose(mine.rewards, theirs.rewards, atol=1e-4)
        np.testing.assert_allclose(mine.advantages, theirs.advantages, atol=1e-4)
        np.testing.assert_allclose(mine.advantages, mine.anew, atol=1e-5)
    # The credit that is left is what the callback for credit gives alone.
    logprobs, ref_logprobs = (
        logprobs_by_hand(language_model, weights, one[1], eos=2)
        for weights in (one[1].weights, reference)
    )
    credit = one[1].rewards + COEF * (logprobs - ref_logprobs)
    assert (np.abs(credit) > 1e-4).sum() > 2 * (one[1].paid != 0).sum()


def test_masks_of_maskable_ppo_hold_for_both_distributions(language_model, make_text_envs):
    envs = make_text_envs(NUM_ENVS, min_new_tokens=4)
    env = TextVecEnv(ActionMask(IllegalToken(envs)))
    agent = make_agent(env, language_model, MaskablePPO, MaskableLanguageModelPolicy)
    _, rollout = rollouts(agent, KLPenaltyCallback(COEF), num_rollouts=2)
    logprobs, ref_logprobs = (
        logprobs_by_hand(language_model, weights, rollout, eos=2)
        for weights in (rollout.weights, language_model.state_dict())
    )
    expected = rollout.paid - COEF * (logprobs - ref_logprobs)
    np.testing.assert_allclose(rollout.rewards, expected, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_of_a_loaded_agent_is_the_model_it_was_made_of(
    tmp_path, language_model, env, lora
):
    agent = make_agent(env, language_model, lora=lora)
    agent.learn(4 * NUM_ENVS * NUM_STEPS)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=env, device="cpu")
    reference = loaded.policy.reference().network.model
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        said, expected, now = (
            model(ids).logits for model in (reference, language_model, loaded.policy.network.model)
        )
    assert torch.equal(said, expected)
    assert (now - expected).abs().max() > 0.01
    (rollout,) = rollouts(loaded, KLPenaltyCallback(COEF), num_rollouts=1)
    assert np.abs(rollout.rewards - rollout.paid).max() > 0.01


@pytest.mark.parametrize("lora", [False, True])
def test_a_coefficient_of_zero_changes_nothing(language_model, env, lora):
    def train(*callbacks):
        agent = make_agent(env, language_model, lora=lora)
        agent.learn(3 * NUM_ENVS * NUM_STEPS, callback=list(callbacks))
        return agent.policy.state_dict()

    with_callback, without = train(KLPenaltyCallback(0)), train()
    assert all(torch.equal(with_callback[name], without[name]) for name in without)


def test_the_penalty_keeps_the_policy_near_the_reference(language_model, tiny):
    class Pays(gym.RewardWrapper):
        def step(self, action):
            observation, _, terminated, truncated, info = self.env.step(action)
            return observation, float(action < 170), terminated, truncated, info

    def final_kl(coef):
        agent = PPO(
            LanguageModelPolicy, Pays(gym.make("ABC-RLHF-v0", **tiny)), n_steps=64, batch_size=32,
            n_epochs=4, learning_rate=1e-2, gamma=0.0, gae_lambda=0.0, device="cpu", seed=0,
            policy_kwargs={"model": language_model},
        )  # fmt: skip
        probe = Probe()
        agent.learn(64 * 7, callback=[KLPenaltyCallback(coef), probe])
        return probe.rollouts[-1].kl

    free, held = final_kl(0.0), final_kl(5.0)
    assert free > 1.0
    assert held < free / 4


@pytest.mark.parametrize("coef", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_other_coefficients_are_refused(coef):
    with pytest.raises(InvalidArgumentError, match="coef"):
        KLPenaltyCallback(coef)


def test_normalised_rewards_are_refused(language_model, env):
    agent = make_agent(VecNormalize(env, norm_obs=False), language_model)
    with pytest.raises(InvalidArgumentError, match="norm_reward"):
        agent.learn(8, callback=KLPenaltyCallback(0.1))


def test_other_policies_and_algorithms_are_refused(make_credit_env):
    agent = PPO("MlpPolicy", make_credit_env(), n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(InvalidArgumentError, match="LanguageModelPolicy"):
        agent.learn(4, callback=KLPenaltyCallback(0.1))
    off_policy = DQN("MlpPolicy", make_credit_env(), buffer_size=10, device="cpu")
    with pytest.raises(InvalidArgumentError, match="no rollout buffer"):
        off_policy.learn(5, callback=KLPenaltyCallback(0.1))
