from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN

from textgym.agents.sb3 import HindsightDictReplayBuffer, HindsightReplayBuffer
from textgym.errors import InvalidArgumentError

BOX, ACTIONS = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)


def make_buffer(size=5, num_envs=1, **keywords):
    return HindsightReplayBuffer(size * num_envs, BOX, ACTIONS, n_envs=num_envs, **keywords)


def add(buffer, rewards, dones=(False,), infos=({},)):
    zeros = np.zeros((buffer.n_envs, 1), dtype=np.float32)
    actions = np.zeros((buffer.n_envs, 1), dtype=np.int64)
    buffer.add(zeros, zeros, actions, np.array(rewards), np.array(dones), list(infos))


def add_episode(buffer, credit):
    for step in range(len(credit)):
        ends = step == len(credit) - 1
        add(buffer, [sum(credit) if ends else 0.0], [ends], [{"credit": credit} if ends else {}])


def test_stored_rewards_become_credit_when_the_episode_ends():
    buffer = make_buffer()
    add(buffer, [0.0])
    add(buffer, [0.0])
    np.testing.assert_array_equal(buffer.rewards[:, 0], 0)
    add(buffer, [6.0], [True], [{"credit": np.array([1.0, 2.0, 3.0])}])
    np.testing.assert_array_equal(buffer.rewards[:, 0], [1, 2, 3, 0, 0])
    np.testing.assert_array_equal(buffer.dones[:, 0], [0, 0, 1, 0, 0])


def test_credit_wraps_around_the_end_of_the_ring():
    buffer = make_buffer(5)
    add_episode(buffer, [1.0, 2.0, 3.0])
    add_episode(buffer, [4.0, 5.0, 6.0, 7.0])
    np.testing.assert_array_equal(buffer.rewards[:, 0], [6, 7, 3, 4, 5])


def test_an_episode_that_ends_in_the_last_slot_is_found():
    buffer = make_buffer(4)
    add_episode(buffer, [1.0, 2.0])
    add_episode(buffer, [3.0, 4.0])
    assert buffer.pos == 0
    np.testing.assert_array_equal(buffer.rewards[:, 0], [1, 2, 3, 4])


def test_credit_of_overwritten_transitions_goes_with_them():
    buffer = make_buffer(3)
    add_episode(buffer, [1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(buffer.rewards[:, 0], [4, 5, 3])


def test_environments_end_at_their_own_time():
    buffer = make_buffer(6, num_envs=2)
    add(buffer, [0.0, 0.0], [False, False], [{}, {}])
    add(buffer, [3.0, 0.0], [True, False], [{"credit": [1.0, 2.0]}, {}])
    add(buffer, [0.0, 9.0], [False, True], [{}, {"credit": [2.0, 3.0, 4.0]}])
    add(buffer, [7.0, 5.0], [True, True], [{"credit": [3.0, 4.0]}, {"credit": [5.0]}])
    np.testing.assert_array_equal(buffer.rewards.T, [[1, 2, 3, 4, 0, 0], [2, 3, 4, 5, 0, 0]])


def test_shared_observations_leave_the_rewards_in_their_slots():
    buffer = make_buffer(5, optimize_memory_usage=True, handle_timeout_termination=False)
    add_episode(buffer, [1.0, 2.0, 3.0])
    add_episode(buffer, [4.0, 5.0, 6.0, 7.0])
    np.testing.assert_array_equal(buffer.rewards[:, 0], [6, 7, 3, 4, 5])


def test_dict_observations():
    space = spaces.Dict({"ids": BOX})
    buffer = HindsightDictReplayBuffer(4, space, ACTIONS)
    zeros = {"ids": np.zeros((1, 1), dtype=np.float32)}
    action = np.zeros((1, 1), dtype=np.int64)
    buffer.add(zeros, zeros, action, np.array([0.0]), np.array([False]), [{}])
    buffer.add(zeros, zeros, action, np.array([5.0]), np.array([True]), [{"credit": [2.0, 3.0]}])
    np.testing.assert_array_equal(buffer.sample(50).rewards.unique(), [2, 3])


def test_an_episode_cut_short_keeps_what_its_steps_paid():
    buffer = make_buffer()
    add(buffer, [0.5])
    add(buffer, [1.5], [True], [{"TimeLimit.truncated": True}])
    np.testing.assert_array_equal(buffer.rewards[:2, 0], [0.5, 1.5])


def test_credit_longer_than_its_episode_is_refused():
    buffer = make_buffer()
    add_episode(buffer, [1.0, 2.0])
    with pytest.raises(InvalidArgumentError, match="previous episode"):
        add(buffer, [3.0], [True], [{"credit": [1.0, 2.0]}])


def test_an_episode_without_credit_is_refused():
    with pytest.raises(InvalidArgumentError, match="CreditAssignment"):
        add(make_buffer(), [1.0], [True], [{}])


def test_dqn_samples_credit(make_credit_env):
    agent = DQN(
        "MlpPolicy", make_credit_env((3,)), replay_buffer_class=HindsightReplayBuffer,
        buffer_size=8, learning_starts=4, batch_size=4, device="cpu", seed=0,
    )  # fmt: skip
    agent.learn(12)  # four episodes with the credit 1, 2, 7
    # Steps 8 to 11 have overwritten 0 to 3: slot s holds step 8 + s, or s.
    expected = [[1, 2, 7][step % 3] for step in (8, 9, 10, 11, 4, 5, 6, 7)]
    np.testing.assert_array_equal(agent.replay_buffer.rewards[:, 0], expected)
