from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from textgym.agents.sb3 import HindsightCreditCallback, TextVecEnv
from textgym.errors import InvalidArgumentError
from textgym.wrappers.vector import ActionMask


class Probe(BaseCallback):
    """Keeps what each rollout was when it went into the update."""

    def _on_rollout_start(self):
        self.rollouts = getattr(self, "rollouts", [])
        self.paid = []

    def _on_step(self):
        self.paid.append(self.locals["rewards"].copy())
        return True

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        names = ("rewards", "advantages", "returns", "values", "episode_starts")
        rollout = {name: getattr(buffer, name).copy() for name in names}
        rollout |= {"paid": np.stack(self.paid), "dones": self.model._last_episode_starts}
        last = self.model.policy.obs_to_tensor(self.model._last_obs)[0]
        last_values = self.model.policy.predict_values(last)
        buffer.compute_returns_and_advantage(last_values.detach(), rollout["dones"])
        rollout |= {"anew": buffer.advantages.copy(), "returns_anew": buffer.returns.copy()}
        self.rollouts.append(SimpleNamespace(**rollout))


def rollouts(
    env, num_rollouts=2, n_steps=4, algorithm=PPO, policy="MlpPolicy", credit=True, **more
):
    keywords = {"gamma": 1.0, "gae_lambda": 0.8, "device": "cpu", "seed": 0, **more}
    if algorithm is not A2C:
        keywords |= {"batch_size": n_steps, "n_epochs": 1}
    agent = algorithm(policy, env, n_steps=n_steps, **keywords)
    probe = Probe()
    callbacks = [HindsightCreditCallback(), probe] if credit else [probe]
    agent.learn(num_rollouts * n_steps * agent.n_envs, callback=callbacks)
    return probe.rollouts


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_rewards_become_credit_by_hand(make_credit_env, algorithm):
    # Episodes of 3 steps, credit (1, 2, 7) of 10; rollouts of 4 steps cut the second and third.
    first, second, third = rollouts(make_credit_env((3,)), 3, algorithm=algorithm)
    np.testing.assert_allclose(first.rewards[:, 0], [1, 2, 7, 0])
    # Step 1 of the cut episode gets its own 2 and the 1 of the step that is gone.
    np.testing.assert_allclose(second.rewards[:, 0], [3, 7, 0, 0])
    np.testing.assert_allclose(third.rewards[:, 0], [10, 1, 2, 7])


def test_several_environments_keep_their_own_credit(make_credit_env):
    env = DummyVecEnv([lambda: make_credit_env((3,)), lambda: make_credit_env((5, 2))])
    first, second = rollouts(env, n_steps=4)
    np.testing.assert_allclose(first.rewards.T, [[1, 2, 7, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(second.rewards.T, [[3, 7, 0, 0], [10, 1, 9, 0]])


def test_an_episode_longer_than_two_rollouts_is_paid_where_it_ends(make_credit_env):
    first, second, third = rollouts(make_credit_env((7,)), 3, n_steps=3)
    for rollout in (first, second):
        np.testing.assert_array_equal(rollout.rewards, 0)
    np.testing.assert_allclose(third.rewards[:, 0], [10, 0, 0])


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_advantages_and_returns_are_those_of_the_new_rewards(make_credit_env, algorithm, gamma):
    env = DummyVecEnv([lambda: make_credit_env((3, 2)), lambda: make_credit_env((5,))])
    for rollout in rollouts(env, 3, n_steps=7, algorithm=algorithm, gamma=gamma):
        np.testing.assert_allclose(rollout.advantages, rollout.anew, atol=1e-5)
        np.testing.assert_allclose(rollout.returns, rollout.returns_anew, atol=1e-5)


def test_each_part_of_an_episode_keeps_its_discounted_return(make_credit_env):
    gamma = 0.9
    for rollout in rollouts(make_credit_env((5, 3)), 4, n_steps=6, gamma=gamma)[1:]:
        starts = np.flatnonzero(rollout.episode_starts[:, 0])
        head = slice(0, starts[0])  # the end of an episode that began before, if any
        discounts = gamma ** np.arange(starts[0])
        np.testing.assert_allclose(
            discounts @ rollout.rewards[head, 0], discounts @ rollout.paid[head, 0], atol=1e-5
        )


def test_the_bootstrapped_value_of_a_truncated_episode_is_kept(make_credit_env):
    truncated = {"num_rollouts": 1, "n_steps": 6, "gamma": 0.9}
    env = make_credit_env((3,), truncates=True)
    (without,) = rollouts(env, credit=False, **truncated)
    bonus = without.rewards[[2, 5], 0] - 10
    assert np.abs(bonus).min() > 1e-3
    env = make_credit_env((3,), truncates=True)
    (with_credit,) = rollouts(env, **truncated)
    np.testing.assert_allclose(with_credit.rewards[[0, 1, 3, 4], 0], [1, 2, 1, 2])
    np.testing.assert_allclose(with_credit.rewards[[2, 5], 0], 7 + bonus, atol=1e-6)


def test_a_truncated_episode_without_credit_is_left_alone(make_credit_env):
    def make():
        return TimeLimit(make_credit_env((9,)), 2)

    (without,) = rollouts(make(), 1, credit=False)
    (with_credit,) = rollouts(make(), 1)
    np.testing.assert_array_equal(without.rewards, with_credit.rewards)
    np.testing.assert_array_equal(without.advantages, with_credit.advantages)


def test_text_of_several_rows_in_a_dict_buffer(make_text_vec_env):
    got = rollouts(make_text_vec_env(3), 3, n_steps=10, policy="MultiInputPolicy")
    for rollout in got:
        # Undiscounted, each part of an episode pays in all what the environment paid for it.
        np.testing.assert_allclose(rollout.rewards.sum(axis=0), rollout.paid.sum(axis=0), atol=1e-4)
        assert (rollout.rewards != 0).sum() > 2 * (rollout.paid != 0).sum()
        np.testing.assert_allclose(rollout.advantages, rollout.anew, atol=1e-5)


def test_maskable_ppo_learns_from_credit_too(make_text_envs):
    env = TextVecEnv(ActionMask(make_text_envs(2)))
    got = rollouts(env, 2, n_steps=12, algorithm=MaskablePPO, policy="MultiInputPolicy")
    for rollout in got:
        np.testing.assert_allclose(rollout.rewards.sum(axis=0), rollout.paid.sum(axis=0), atol=1e-4)
        np.testing.assert_allclose(rollout.advantages, rollout.anew, atol=1e-5)


def test_an_environment_without_credit_is_refused(make_credit_env):
    with pytest.raises(InvalidArgumentError, match="CreditAssignment"):
        rollouts(make_credit_env((3,), credit="none"))


@pytest.mark.parametrize("credit", [[1.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
def test_credit_of_another_length_is_refused(make_credit_env, credit):
    with pytest.raises(InvalidArgumentError, match="one number per step"):
        rollouts(make_credit_env((3,), credit=credit))


def test_credit_no_longer_than_the_rest_of_a_cut_episode_is_refused(make_credit_env):
    with pytest.raises(InvalidArgumentError, match="more than 2"):
        rollouts(make_credit_env((4,), credit=[1.0, 9.0]), n_steps=2)


def test_normalised_rewards_are_refused(make_credit_env):
    env = VecNormalize(DummyVecEnv([lambda: make_credit_env((3,))]))
    with pytest.raises(InvalidArgumentError, match="norm_reward"):
        rollouts(env)


def test_an_algorithm_without_rollouts_is_refused(make_credit_env):
    agent = DQN("MlpPolicy", make_credit_env((3,)), buffer_size=10, device="cpu")
    with pytest.raises(InvalidArgumentError, match="HindsightReplayBuffer"):
        agent.learn(5, callback=HindsightCreditCallback())
