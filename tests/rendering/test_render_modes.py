"""The render modes of every registered id, as Gymnasium's wrappers use them."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import AddRenderObservation, RecordVideo, RenderCollection
from rich.text import Text

from textgym.registration import ENVIRONMENTS
from textgym.rendering import FRAME_GROUND, caption_text, draw_frame, frame_lines
from textgym.wrappers import CreditAssignment

IDS = list(ENVIRONMENTS)
FEATURES = "ABC-RLHF-Features-v0"


def play(env, num_steps, seed=0):
    """Frames of the reset and of each step, with the least action each time."""
    env.reset(seed=seed)
    frames = [env.render()]
    for _ in range(num_steps):
        env.step(np.zeros_like(env.action_space.sample()))
        frames.append(env.render())
    return frames


def caption_of(frame):
    """The pixels of the last line, where the score is."""
    return frame[-42:-20]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("render_mode", [None, "ansi", "html", "human", "rgb_array"])
def test_the_checker_passes_without_a_warning(env_id, render_mode):
    env = gym.make(env_id, render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "Features" in env_id:  # made of wrappers, with observations that have no bounds
            warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
            warnings.filterwarnings("ignore", message=".*Box observation space m.*imum value")
            check_env(env)
        else:
            check_env(env.unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_all_frames_have_one_shape(env_id):
    env = gym.make(env_id, render_mode="rgb_array", min_new_tokens=3, max_new_tokens=3)
    frames = play(env, 3)
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert frames[0].shape[2] == 3
    assert all(frame.dtype == np.uint8 for frame in frames)
    assert all(not np.array_equal(a, b) for a, b in pairwise(frames))


@pytest.mark.parametrize("render_mode", ["html", "rgb_array"])
@pytest.mark.parametrize("env_id", IDS)
def test_a_batch_shows_what_its_rows_would_show_alone(env_id, render_mode):
    arguments = {"render_mode": render_mode, "min_new_tokens": 3, "max_new_tokens": 3}
    together = play(gym.make_vec(env_id, 2, **arguments), 3)
    for row in range(2):
        alone = play(gym.make(env_id, **arguments), 3, seed=row)
        for frames, expected in zip(together, alone, strict=True):
            assert isinstance(frames, tuple)
            assert np.array_equal(frames[row], expected)


def test_the_score_appears_with_the_last_token():
    env = gym.make(FEATURES, render_mode="rgb_array", max_new_tokens=3)
    *before, finished = (caption_of(frame) for frame in play(env, 3))
    assert all(len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1 for pixels in before)
    scored = env.unwrapped.last_step.scored
    credit = env.unwrapped.rendered_credit(scored)[scored.completion_mask].tolist()
    caption = caption_text(scored.score.item(), credit, FRAME_GROUND)
    assert np.array_equal(finished, caption_of(draw_frame(Text(), 4, caption)))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_a_row_that_restarts_shows_the_episode_that_ended(mode):
    arguments = {"render_mode": "rgb_array", "max_new_tokens": 3}
    frames = play(gym.make_vec(FEATURES, 2, autoreset_mode=mode, **arguments), 4)
    alone = play(gym.make(FEATURES, **arguments), 3)
    assert np.array_equal(frames[3][0], alone[3])
    assert not np.array_equal(frames[4][0], alone[3])


def test_the_frame_shows_the_credit_of_the_wrapper():
    frames = {}
    for credit in ("uniform", "abc"):
        env = gym.make(FEATURES, render_mode="rgb_array", max_new_tokens=4)
        frames[credit] = play(CreditAssignment(env, credit), 4)[-1]
    assert not np.array_equal(frames["uniform"], frames["abc"])


def test_the_render_mode_changes_no_result():
    results = []
    for render_mode in (None, "rgb_array"):
        env = gym.make(FEATURES, render_mode=render_mode, max_new_tokens=5)
        env.reset(seed=0)
        results.append([env.step(0)[1] for _ in range(5)])
    assert results[0] == results[1]


def test_the_wrappers_that_collect_frames():
    env = RenderCollection(gym.make(FEATURES, render_mode="rgb_array", max_new_tokens=3))
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    assert len(env.render()) == 4
    seen = AddRenderObservation(gym.make("ABC-RLHF-v0", render_mode="rgb_array"))
    observation, _ = seen.reset(seed=0)
    assert observation in seen.observation_space
    assert observation.shape == (frame_lines(seen.unwrapped.max_length) * 22 + 84, 640, 3)


def test_html_has_a_span_for_each_token_and_its_credit_at_the_end():
    env = gym.make(FEATURES, render_mode="html", max_new_tokens=3)
    under_way, *_, finished = play(CreditAssignment(env, "uniform"), 3)
    assert "rgba" not in under_way.split("</style>")[1]
    assert finished.count("<span style=") + finished.count('<span class="negative"') == 3
    score = env.unwrapped.last_step.scored.score.item()
    assert f"score {score:+.2f}" in finished
    credit = [float(value) for value in re.findall(r"credit ([+-]\d\.\d+), share", finished)]
    assert len(credit) == 3
    assert sum(credit) == pytest.approx(score, abs=2e-4)
    assert finished._repr_html_() == finished  # notebooks call it


def test_the_window_of_gymnasium_shows_the_frames(monkeypatch):
    pytest.importorskip("pygame", reason="HumanRendering draws with pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from gymnasium.wrappers import HumanRendering

    env = HumanRendering(gym.make(FEATURES, render_mode="rgb_array", max_new_tokens=2))
    env.reset(seed=0)
    env.step(0)
    height, width, _ = env.env.render().shape
    assert env.window.get_size() == (width, height)
    env.close()


def test_a_video_of_an_environment(tmp_path):
    env = gym.make(FEATURES, render_mode="rgb_array", max_new_tokens=3)
    env = RecordVideo(env, str(tmp_path))
    play(env, 3)
    env.close()
    assert (tmp_path / "rl-video-episode-0.mp4").stat().st_size > 0


def test_a_video_of_a_batch(tmp_path):
    if gym.__version__.startswith("1.2."):
        pytest.skip("Gymnasium 1.2, the oldest that is allowed, has no video of batches")
    envs = gym.make_vec(FEATURES, 2, render_mode="rgb_array", max_new_tokens=3)
    envs = gym.wrappers.vector.RecordVideo(envs, str(tmp_path), video_length=3)
    play(envs, 4)
    envs.close()
    assert (tmp_path / "rl-video-episode-0.mp4").stat().st_size > 0


def test_no_render_mode_warns(tiny):
    env = gym.make("ABC-RLHF-v0", **tiny).unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
