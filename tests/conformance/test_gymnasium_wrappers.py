"""Gymnasium's own wrappers: how each of them goes around an environment, or why none would."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector

NUM_TOKENS = 8
NO_FRAMES = "it is for the frames of games"
NOT_CONTINUOUS = "it is for continuous actions, and tokens are discrete"
NO_QUANTITIES = "token ids are names, not quantities, and features have no bounds"
NOT_JAX = "it is for environments written in JAX"


def tokens(**arguments):
    """Observations are a Dict of tokens, actions too are tokens."""
    return gym.make("ABC-RLHF-Planted-v0", **arguments)


FEATURES = {
    "id": "ABC-RLHF-Features-v0",
    **dict.fromkeys(["tokenizer", "reward_model", "model"], "planted"),
    "prompts": ["the film was", "it was"],
    "max_new_tokens": NUM_TOKENS,
    "k": 4,
}


def features(**arguments):
    """Observations are a Box of features, and there are four actions."""
    return gym.make(**FEATURES, **arguments)


def pixels():
    """Observations are frames."""
    return wrappers.AddRenderObservation(tokens(render_mode="rgb_array"))


def many(make=tokens, **arguments):
    """Several environments in one."""
    if make is features:
        return gym.make_vec(num_envs=3, **FEATURES)
    return gym.make_vec("ABC-RLHF-Planted-v0", num_envs=3, **arguments)


def double(x):
    return 2 * x


SINGLE = {
    "AtariPreprocessing": NO_FRAMES,
    "DelayObservation": lambda wrap: wrap(tokens(), delay=2),
    "DtypeObservation": lambda wrap: wrap(features(), np.float64),
    "DiscretizeObservation": NO_QUANTITIES,
    "FilterObservation": lambda wrap: wrap(tokens(), ["input_ids"]),
    "FlattenObservation": lambda wrap: wrap(tokens()),
    "FrameStackObservation": lambda wrap: wrap(features(), 3),
    "GrayscaleObservation": lambda wrap: wrap(pixels()),
    "TransformObservation": lambda wrap: wrap(
        tokens(), lambda seen: seen["input_ids"], tokens().observation_space["input_ids"]
    ),
    "MaxAndSkipObservation": NO_FRAMES,
    "NormalizeObservation": lambda wrap: wrap(features()),
    "AddRenderObservation": lambda wrap: wrap(tokens(render_mode="rgb_array"), render_only=False),
    "ResizeObservation": lambda wrap: wrap(pixels(), (40, 60)),
    "ReshapeObservation": lambda wrap: wrap(features(), (features().observation_space.shape[0], 1)),
    "RescaleObservation": NO_QUANTITIES,
    "TimeAwareObservation": lambda wrap: wrap(tokens(max_episode_steps=NUM_TOKENS + 1)),
    "ClipAction": NOT_CONTINUOUS,
    "DiscretizeAction": NOT_CONTINUOUS,
    "TransformAction": lambda wrap: wrap(features(), lambda a: 3 - a, features().action_space),
    "RescaleAction": NOT_CONTINUOUS,
    "StickyAction": lambda wrap: wrap(tokens(), 0.25),
    "RepeatAction": lambda wrap: wrap(tokens(), 3),
    "ClipReward": lambda wrap: wrap(tokens(), -1, 1),
    "TransformReward": lambda wrap: wrap(tokens(), double),
    "NormalizeReward": lambda wrap: wrap(tokens()),
    "TimeLimit": lambda wrap: wrap(tokens(), NUM_TOKENS - 2),
    "Autoreset": lambda wrap: wrap(tokens()),
    "PassiveEnvChecker": lambda wrap: wrap(tokens()),
    "OrderEnforcing": lambda wrap: wrap(tokens()),
    "RecordEpisodeStatistics": lambda wrap: wrap(tokens()),
    "AddWhiteNoise": lambda wrap: wrap(tokens(render_mode="rgb_array"), 0.1),
    "ObstructView": lambda wrap: wrap(tokens(render_mode="rgb_array"), 0.1, 8),
    "RenderCollection": lambda wrap: wrap(tokens(render_mode="rgb_array")),
    "RecordVideo": lambda wrap: wrap(tokens(render_mode="rgb_array"), "videos"),
    "HumanRendering": lambda wrap: wrap(tokens(render_mode="rgb_array")),
    "ArrayConversion": lambda wrap: wrap(tokens(), *numpy_and_torch()),
    "JaxToNumpy": NOT_JAX,
    "JaxToTorch": NOT_JAX,
    "NumpyToTorch": lambda wrap: wrap(tokens()),
}
"""By wrapper: a function that makes it, or why it makes no sense here."""

VECTOR = {
    "VectorizeTransformObservation": lambda wrap: wrap(
        many(), wrappers.FilterObservation, filter_keys=["input_ids"]
    ),
    "VectorizeTransformAction": lambda wrap: wrap(
        many(features),
        wrappers.TransformAction,
        func=lambda action: 3 - action,
        action_space=features().action_space,
    ),
    "VectorizeTransformReward": lambda wrap: wrap(many(), wrappers.TransformReward, func=double),
    "DictInfoToList": lambda wrap: wrap(many()),
    "TransformObservation": lambda wrap: wrap(
        many(),
        lambda seen: seen["input_ids"],
        many().observation_space["input_ids"],
        many().single_observation_space["input_ids"],
    ),
    "FilterObservation": lambda wrap: wrap(many(), ["input_ids"]),
    "FlattenObservation": lambda wrap: wrap(many()),
    "GrayscaleObservation": NO_FRAMES,
    "ResizeObservation": NO_FRAMES,
    "ReshapeObservation": lambda wrap: wrap(
        many(features), (features().observation_space.shape[0], 1)
    ),
    "RescaleObservation": NO_QUANTITIES,
    "DtypeObservation": lambda wrap: wrap(many(features), np.float64),
    "NormalizeObservation": lambda wrap: wrap(many(features)),
    "TransformAction": lambda wrap: wrap(
        many(features), lambda actions: 3 - actions, many(features).action_space
    ),
    "ClipAction": NOT_CONTINUOUS,
    "RescaleAction": NOT_CONTINUOUS,
    "TransformReward": lambda wrap: wrap(many(), double),
    "ClipReward": lambda wrap: wrap(many(), -1, 1),
    "NormalizeReward": lambda wrap: wrap(many()),
    "RecordEpisodeStatistics": lambda wrap: wrap(many()),
    "RecordVideo": lambda wrap: wrap(many(render_mode="rgb_array"), "videos"),
    "HumanRendering": lambda wrap: wrap(many(render_mode="rgb_array")),
    "ArrayConversion": lambda wrap: wrap(vector.DictInfoToList(many()), *numpy_and_torch()),
    "JaxToNumpy": NOT_JAX,
    "JaxToTorch": NOT_JAX,
    "NumpyToTorch": lambda wrap: wrap(vector.DictInfoToList(many())),
}
"""The same for the wrappers of vector environments.

Conversion to other arrays does not know the arrays of texts in which Gymnasium has the infos of
several environments, but it knows lists of infos.
"""

NEEDS = {
    "ArrayConversion": "array_api_compat",
    "HumanRendering": "pygame",
    "NumpyToTorch": "array_api_compat",
    "RecordVideo": "moviepy",
    "ResizeObservation": "cv2",
}
"""What Gymnasium itself wants installed for some wrappers."""


def numpy_and_torch():
    import torch

    return np, torch


def made(table, room, name):
    """A wrapper around an environment; the test is skipped where a package is missing."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return table[name](getattr(room, name))


def is_made(table, room):
    """Names of the wrappers that are tried, of those that the installed Gymnasium has."""
    return [name for name, entry in table.items() if callable(entry) and name in room.__all__]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where videos are written; and no window is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize(("table", "room"), [(SINGLE, wrappers), (VECTOR, vector)])
def test_the_tables_leave_no_wrapper_out(table, room):
    assert set(room.__all__) - {"vector"} <= set(table)


@pytest.mark.parametrize("name", is_made(SINGLE, wrappers))
def test_a_wrapper_plays_episodes(name):
    env = made(SINGLE, wrappers, name)
    env.action_space.seed(0)
    ended = 0
    observation, _ = env.reset(seed=0)
    for _ in range(3 * NUM_TOKENS):
        assert observation in env.observation_space or name in ("ArrayConversion", "NumpyToTorch")
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not truncated or name == "TimeLimit"
        if terminated or truncated:
            ended += 1
            if name != "Autoreset":
                observation, _ = env.reset()
    assert ended >= 2
    if env.render_mode is not None:
        assert env.render() is not None or name == "HumanRendering"
    env.close()


@pytest.mark.parametrize("name", is_made(VECTOR, vector))
def test_a_vector_wrapper_plays_episodes(name):
    envs = made(VECTOR, vector, name)
    envs.action_space.seed(0)
    ended = 0
    observations, _ = envs.reset(seed=0)
    for _ in range(3 * NUM_TOKENS):
        assert observations in envs.observation_space or name in ("ArrayConversion", "NumpyToTorch")
        observations, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert not truncated.any()
        ended += int(terminated.sum())
    assert ended >= 6
    envs.close()


def test_statistics_are_those_of_the_episode():
    env = wrappers.RecordEpisodeStatistics(tokens())
    env.action_space.seed(1)
    env.reset(seed=1)
    for _ in range(NUM_TOKENS):
        *_, info = env.step(env.action_space.sample(np.array([0] * 3 + [1] * 14, dtype=np.int8)))
    assert info["episode"]["r"] == info["score"]
    assert info["episode"]["l"] == info["completion_tokens"] == NUM_TOKENS


def test_time_is_told_without_a_limit_that_is_ever_reached():
    """A limit of max_new_tokens would truncate the step that terminates."""
    env = wrappers.TimeAwareObservation(
        tokens(max_episode_steps=NUM_TOKENS + 1), flatten=False, normalize_time=False
    )
    observation, _ = env.reset(seed=0)
    times = [int(observation["time"][0])]
    terminated = False
    while not terminated:
        observation, _, terminated, truncated, _ = env.step(5)
        assert not truncated
        times.append(int(observation["time"][0]))
    assert times == list(range(NUM_TOKENS + 1))


def test_no_id_has_a_limit_of_its_own():
    """Using up the budget terminates, and a limit would truncate: agents would bootstrap."""
    from textgym.registration import ENVIRONMENTS

    assert all(gym.spec(env_id).max_episode_steps is None for env_id in ENVIRONMENTS)
    with pytest.raises(ValueError, match="max_episode_steps"):
        wrappers.TimeAwareObservation(tokens())
