"""One seed, one course of events: for environments alone, side by side, and as rows of a batch.

``TEXTGYM_SLOW=1`` compares single and batched environments over 10,000 steps instead of 2,000.
"""

from __future__ import annotations

import os
import random
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode

from textgym.registration import ENVIRONMENTS

IDS = [env_id for env_id in ENVIRONMENTS if env_id != "ABC-RLHF-Long-v0"]
NUM_STEPS = 10_000 if os.environ.get("TEXTGYM_SLOW") == "1" else 2_000
ATOL = 1e-5
"""Scores of one text in batches of different sizes differ by rounding."""


def episode(env, seed):
    """What the reset and each step of an episode return, with random actions."""
    env.action_space.seed(0)
    steps, ended = [env.reset(seed=seed)], False
    while not ended:
        steps.append(env.step(env.action_space.sample()))
        ended = steps[-1][2]
    return steps


@pytest.mark.parametrize("env_id", IDS)
def test_two_environments_with_one_seed_are_the_same(env_id):
    first, second = gym.make(env_id), gym.make(env_id)
    for seed in (4, None, None):
        assert data_equivalence(episode(first, seed), episode(second, seed), exact=True)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env_id", IDS)
def test_two_batches_with_one_seed_are_the_same(env_id, mode):
    both = [gym.make_vec(env_id, 3, autoreset_mode=mode) for _ in range(2)]
    both[0].action_space.seed(0)
    assert data_equivalence(*(envs.reset(seed=4) for envs in both), exact=True)
    for _ in range(20):
        actions = both[0].action_space.sample()
        assert data_equivalence(*(envs.step(actions) for envs in both), exact=True)


@pytest.mark.parametrize("env_id", IDS)
def test_the_global_generators_are_left_alone(env_id):
    def states():
        old_numpy = np.random.get_state()  # noqa: NPY002  (that one is meant)
        return random.getstate(), old_numpy, torch.random.get_rng_state().tolist()

    def play():
        episode(gym.make(env_id), seed=3)
        envs = gym.make_vec(env_id, 2)
        envs.reset(seed=3)
        for _ in range(20):
            envs.step(np.zeros(2, dtype=np.int64))
        envs.reset()

    play()  # Models that are loaded for the first time are none of this test.
    before = states()
    play()
    assert data_equivalence(before, states(), exact=True)


@pytest.mark.parametrize("env_id", IDS)
def test_environments_do_not_touch_each_others_generators(env_id):
    undisturbed, disturbed, other = (gym.make(env_id) for _ in range(3))
    expected = [episode(undisturbed, seed) for seed in (4, None, None)]
    got = []
    for seed in (4, None, None):
        other.reset(seed=4)
        got.append(episode(disturbed, seed))
        episode(other, None)
    assert data_equivalence(expected, got, exact=True)


def test_what_a_user_draws_does_not_change_an_environment():
    """Whatever the state of the global generators, a seed gives the same episode."""
    episodes = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (that one is meant)
        torch.manual_seed(seed)
        episodes.append(episode(gym.make("ABC-RLHF-Features-v0"), seed=3))
    assert data_equivalence(*episodes, exact=True)


def test_rows_do_not_touch_each_others_generators():
    """A row that is seeded anew leaves the prompts and budgets of the others as they were."""
    arguments = {"num_envs": 3, "autoreset_mode": AutoresetMode.DISABLED, "min_new_tokens": 1}
    undisturbed, disturbed = (gym.make_vec("ABC-RLHF-v0", **arguments) for _ in range(2))
    undisturbed.reset(seed=4)
    disturbed.reset(seed=4)
    disturbed.reset(seed=[99, None, None], options={"reset_mask": np.array([True, False, False])})
    (texts, infos), (others, other_infos) = undisturbed.reset(), disturbed.reset()
    assert np.array_equal(texts["input_ids"][1:], others["input_ids"][1:])
    assert np.array_equal(infos["token_budget"][1:], other_infos["token_budget"][1:])


@pytest.mark.parametrize(("mode", "num_envs"), list(product(AutoresetMode, [1, 3, 16])))
def test_rows_are_single_environments(mode, num_envs, tiny):
    """Token for token and score for score, under random policies, with ragged episodes."""
    compared = compare_with_single_ones("ABC-RLHF-v0", mode, num_envs, NUM_STEPS, **tiny)
    print(
        f"{mode.name}, {num_envs} rows: {compared['steps']} steps, {compared['episodes']} episodes"
    )
    print(f"  largest difference of scores: {compared['difference']:.2g}")
    assert compared["episodes"] > compared["steps"] / 9  # the longest have 9 tokens
    assert compared["difference"] <= ATOL


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_rows_of_every_id_are_single_environments(mode, env_id):
    compared = compare_with_single_ones(env_id, mode, 3, 150)
    assert compared["episodes"] > 5
    assert compared["difference"] <= ATOL


def compare_with_single_ones(env_id, mode, num_envs, num_steps, **arguments):
    """Play a batch and as many single environments side by side, by the same random actions.

    All that they return is compared where it is read: texts, ends, budgets and final infos are
    equal, and scores and features are close.

    Args:
        env_id: The environment.
        mode: The autoreset mode of the batch.
        num_envs: Number of rows.
        num_steps: How many tokens are written at least, over all rows.
        arguments: Of both environments.

    Returns:
        Steps and episodes compared, and the largest difference of scores.
    """
    envs = gym.make_vec(env_id, num_envs, autoreset_mode=mode, **arguments)
    singles = [gym.make(env_id, **arguments) for _ in range(num_envs)]
    rng = np.random.default_rng(17)
    eos = envs.unwrapped.task.eos_token_id
    num_actions = int(envs.single_action_space.n)
    seen = {"steps": 0, "episodes": 0, "difference": 0.0}

    observations, infos = envs.reset(seed=7)
    for row, env in enumerate(singles):
        observation, info = env.reset(seed=7 + row)
        assert_row(observations, row, observation)
        assert infos["token_budget"][row] == info["token_budget"]
    over = np.zeros(num_envs, dtype=np.bool_)
    while seen["steps"] < num_steps:
        actions = rng.integers(num_actions, size=num_envs)
        if num_actions > eos:
            actions[rng.random(num_envs) < 0.1] = eos
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert not truncated.any()
        for row, env in enumerate(singles):
            if over[row]:  # the batch ignored the action
                observation, info = env.reset()
                assert_row(observations, row, observation)
                assert infos["token_budget"][row] == info["token_budget"]
                assert (rewards[row], terminated[row]) == (0, False)
                continue
            observation, reward, ended, _, info = env.step(actions[row])
            seen["steps"] += 1
            assert ended == terminated[row]
            seen["difference"] = max(seen["difference"], abs(reward - rewards[row]))
            if ended:
                seen["episodes"] += 1
                final = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
                for name, value in info.items():
                    assert final[f"_{name}"][row]
                    assert_close(final[name][row], value)
            if ended and mode is AutoresetMode.SAME_STEP:
                assert_close(infos["final_obs"][row], observation)
                observation, info = env.reset()
                assert infos["token_budget"][row] == info["token_budget"]
            assert_row(observations, row, observation)
        over = terminated if mode is AutoresetMode.NEXT_STEP else np.zeros_like(terminated)
        if mode is AutoresetMode.DISABLED and terminated.any():
            observations, infos = envs.reset(options={"reset_mask": terminated})
            for row in np.flatnonzero(terminated):
                observation, info = singles[row].reset()
                assert_row(observations, row, observation)
                assert infos["token_budget"][row] == info["token_budget"]
    return seen


def assert_row(observations, row, expected):
    """Compare a row of a batch of observations with a single one."""
    if isinstance(expected, dict):
        observations = {name: values[row] for name, values in observations.items()}
    else:
        observations = observations[row]
    assert_close(observations, expected)


def assert_close(ours, theirs):
    """Whole numbers and texts are equal, and floats close."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for name in theirs:
            assert_close(ours[name], theirs[name])
    elif isinstance(theirs, str | int):
        assert ours == theirs
    elif np.asarray(theirs).dtype.kind == "f":
        np.testing.assert_allclose(ours, theirs, atol=10 * ATOL)
    else:
        np.testing.assert_array_equal(ours, theirs)
