"""The batched environment: the single one's rules, and Gymnasium's autoreset conventions."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import textgym  # noqa: F401
from textgym.envs import TextGenerationVectorEnv
from textgym.errors import InvalidArgumentError
from textgym.models import Completions

N = 5
EOS = 2


def make(tiny, mode=AutoresetMode.NEXT_STEP, num_envs=N, **changes):
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=num_envs, autoreset_mode=mode, **{**tiny, **changes}
    )


def scripted_actions(steps, seed=0):
    """Token ids that now and then end an episode early."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(3, 300, size=(steps, N))
    actions[rng.random((steps, N)) < 0.1] = EOS
    return actions


def assert_same(ours, theirs):
    """Equal values, and floats equal to the tolerance of another batch size."""
    assert type(ours) is type(theirs) or isinstance(ours, np.ndarray)
    if isinstance(ours, dict):
        assert set(ours) == set(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        assert ours == theirs


def test_make_vec_gives_the_native_environment(tiny):
    envs = make(tiny)
    assert isinstance(envs.unwrapped, TextGenerationVectorEnv)
    assert envs.num_envs == N
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    single = gym.make("ABC-RLHF-v0", **tiny)
    assert envs.single_observation_space == single.observation_space
    assert envs.single_action_space == single.action_space


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_rows_agree_with_gymnasiums_own_vectorisation_of_the_single_one(tiny, mode):
    """Observations, rewards, ends and every info, over many ragged episodes."""
    ours = make(tiny, mode, action_mask_in_info=True)
    theirs = SyncVectorEnv(
        [lambda: gym.make("ABC-RLHF-v0", action_mask_in_info=True, **tiny)] * N,
        autoreset_mode=mode,
    )
    for mine, other in zip(ours.reset(seed=7), theirs.reset(seed=7), strict=True):
        assert_same(mine, other)
    ended = 0
    for actions in scripted_actions(60):
        for mine, other in zip(ours.step(actions), theirs.step(actions), strict=True):
            assert_same(mine, other)
        ended += ours.unwrapped.last_step.finished.sum()
    assert ended > 20


def test_disabled_mode_agrees_with_single_environments_one_by_one(tiny):
    envs = make(tiny, AutoresetMode.DISABLED)
    seeds = [11, 5, 8, 2, 30]
    observations, _ = envs.reset(seed=seeds)
    script = scripted_actions(10, seed=4)
    rewards = np.zeros(N)
    for actions in script:
        observations, reward, terminated, _, _ = envs.step(actions)
        rewards += reward
    assert terminated.all()
    for row, seed in enumerate(seeds):
        single = gym.make("ABC-RLHF-v0", **tiny)
        single.reset(seed=seed)
        for actions in script:
            observation, reward, done, _, _ = single.step(actions[row])
            if done:
                break
        np.testing.assert_array_equal(observations["input_ids"][row], observation["input_ids"])
        np.testing.assert_array_equal(
            observations["attention_mask"][row], observation["attention_mask"]
        )
        assert rewards[row] == pytest.approx(reward, abs=1e-5)


def test_waiting_rows_stay_as_they_are_until_they_are_reset(tiny):
    envs = make(tiny, AutoresetMode.DISABLED)
    envs.reset(seed=0, options={"max_new_tokens": 9})
    actions = np.array([EOS, 40, 40, 40, 40])
    before, reward, terminated, _, infos = envs.step(actions)
    assert terminated.tolist() == [True, False, False, False, False]
    assert infos["_score"].tolist() == terminated.tolist()
    after, reward, terminated, _, infos = envs.step(np.full(N, 50))
    np.testing.assert_array_equal(after["input_ids"][0], before["input_ids"][0])
    assert reward[0] == 0
    assert terminated[0]
    assert "score" not in infos
    mask = np.array([True, False, False, False, False])
    restarted, infos = envs.reset(seed=[3, None, None, None, None], options={"reset_mask": mask})
    assert infos["_token_budget"].tolist() == mask.tolist()
    np.testing.assert_array_equal(restarted["input_ids"][1:], after["input_ids"][1:])
    assert not envs.step(np.full(N, 50))[2].any()


def test_one_reward_model_call_scores_all_that_end_in_a_step(tiny, monkeypatch):
    envs = make(tiny)
    envs.reset(seed=0, options={"max_new_tokens": 9})
    sizes = []
    read = envs.unwrapped.reward_model.read

    def spy(batch, readouts):
        sizes.append(len(batch))
        return read(batch, readouts)

    monkeypatch.setattr(envs.unwrapped.reward_model, "read", spy)
    envs.step(np.full(N, 40))
    envs.step(np.array([EOS, 40, EOS, EOS, 40]))
    assert sizes == [3]


def test_the_same_seed_gives_the_same_rows(tiny):
    first, second = make(tiny), make(tiny)
    assert_same(first.reset(seed=4)[0], second.reset(seed=[4, 5, 6, 7, 8])[0])


def test_observations_are_copies(tiny):
    envs = make(tiny)
    observations, _ = envs.reset(seed=0)
    kept = observations["input_ids"].copy()
    envs.step(np.full(N, 40))
    np.testing.assert_array_equal(observations["input_ids"], kept)


def test_completions_are_what_the_observations_show(tiny):
    envs = make(tiny)
    base = envs.unwrapped
    assert base.completions.input_ids.shape == (N, 0)
    observations, _ = envs.reset(seed=2)
    prompts = observations["attention_mask"].sum(1)
    for actions in scripted_actions(30, seed=1):
        observations, _, _, _, infos = envs.step(actions)
        lengths = observations["attention_mask"].sum(1)
        restarted = infos.get("_token_budget", np.zeros(N, dtype=bool))
        prompts[restarted] = lengths[restarted]
        shown = zip(observations["input_ids"], lengths, strict=True)
        texts = [ids[:length].tolist() for ids, length in shown]
        expected = Completions.from_lists(
            [text[:prompt] for text, prompt in zip(texts, prompts, strict=True)],
            [text[prompt:] for text, prompt in zip(texts, prompts, strict=True)],
            base.task.pad_token_id,
        )
        for field in ("input_ids", "attention_mask", "completion_mask"):
            assert torch.equal(getattr(base.completions, field), getattr(expected, field))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_the_last_steps_tokens_are_int64_and_minus_one_in_rows_that_wait(tiny, dtype):
    envs = make(tiny, AutoresetMode.DISABLED)
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.array([EOS, 40, 40, EOS, 40], dtype=dtype))
    envs.step(np.array([50, 51, 52, 53, 54], dtype=dtype))
    assert envs.unwrapped.last_step.tokens.dtype == np.int64
    assert envs.unwrapped.last_step.tokens.tolist() == [-1, 51, 52, -1, 54]


def test_rows_that_wait_have_no_action_mask(tiny):
    envs = make(tiny, AutoresetMode.DISABLED, action_mask_in_info=True, min_new_tokens=2)
    _, infos = envs.reset(seed=0, options={"max_new_tokens": 3})
    assert infos["_action_mask"].all()
    assert not infos["action_mask"][:, EOS].any()
    ends_first, ends_last = np.array([EOS, 40, 40, 40, 40]), np.full(N, 40)
    assert envs.step(ends_first)[-1]["_action_mask"].all()  # The end of an episode has one.
    infos = envs.step(ends_last)[-1]
    assert infos["_action_mask"].tolist() == [False, True, True, True, True]
    assert infos["action_mask"][:, EOS].tolist() == [0, 1, 1, 1, 1]
    assert not infos["action_mask"][0].any()
    envs.step(ends_last)
    assert "action_mask" not in envs.step(ends_last)[-1]


def test_rendering_shows_every_row(tiny):
    envs = make(tiny, AutoresetMode.DISABLED, render_mode="ansi")
    envs.reset(seed=0, options={"prompt": "This film", "max_new_tokens": 9})
    envs.step(np.full(N, 40))
    envs.step(np.array([EOS, 40, 40, 40, 40]))
    texts = envs.render()
    assert len(texts) == N
    assert all("This film" in text for text in texts)
    assert ["score" in text for text in texts] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"autoreset_mode": "same_step"}, '"SameStep" or "Disabled"'),
        ({"render_mode": "human"}, "render_mode"),
        ({"min_new_tokens": 99}, "min_new_tokens"),
    ],
)
def test_bad_arguments_are_refused_at_construction(tiny, changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TextGenerationVectorEnv(**{"num_envs": 2, **tiny, **changes})


@pytest.mark.parametrize(
    "actions", [np.zeros(N - 1, dtype=int), np.full(N, -1), np.full(N, 10_000), np.zeros(N)]
)
def test_actions_that_are_no_tokens_are_refused(tiny, actions):
    envs = make(tiny)
    envs.reset(seed=0)
    with pytest.raises(InvalidArgumentError, match="token ids"):
        envs.step(actions)


def test_stepping_before_reset_is_refused(tiny):
    with pytest.raises(ResetNeeded):
        make(tiny).step(np.zeros(N, dtype=int))


@pytest.mark.parametrize("mask", [np.zeros(N, dtype=bool), np.ones(N), np.ones(N - 1, dtype=bool)])
def test_bad_reset_masks_are_refused(tiny, mask):
    envs = make(tiny)
    envs.reset(seed=0)
    with pytest.raises(InvalidArgumentError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


def test_a_wrong_number_of_seeds_is_refused(tiny):
    with pytest.raises(InvalidArgumentError, match="one per row"):
        make(tiny).reset(seed=[1, 2])
