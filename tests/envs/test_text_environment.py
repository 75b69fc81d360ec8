"""What a wrapper of one's own may read, in both forms."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401
from textgym.models import PrefixScores

EOS = 2
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def test_the_single_environment_is_a_batch_of_one(tiny):
    env = gym.make("ABC-RLHF-v0", **tiny).unwrapped
    env.reset(seed=0, options={"max_new_tokens": 2})
    assert (env.last_step.tokens.tolist(), env.last_step.scored) == ([-1], None)
    env.step(40)
    assert env.last_step.tokens.tolist() == [40]
    assert (env.last_step.finished.tolist(), env.ended.tolist()) == ([False], [False])
    *_, info = env.step(50)
    assert (env.last_step.finished.tolist(), env.ended.tolist()) == ([True], [True])
    assert env.last_step.scored.score.tolist() == [info["score"]]
    now = env.completions
    assert now.input_ids[now.completion_mask].tolist() == [40, 50]
    env.reset()
    assert (env.last_step.tokens.tolist(), env.last_step.scored) == ([-1], None)
    assert env.ended.tolist() == [False]
    assert not env.completions.completion_mask.any()


@pytest.mark.parametrize("mode", MODES)
def test_scored_holds_the_finished_texts_in_the_order_of_their_rows(tiny, mode):
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=4, autoreset_mode=mode, **tiny)
    base = envs.unwrapped
    base.request_readouts([PrefixScores()])
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.array([40, 41, 42, 43]))
    assert base.last_step.scored is None
    before = base.completions
    _, rewards, *_ = envs.step(np.array([50, EOS, 52, EOS]))
    last = base.last_step
    assert last.finished.tolist() == [False, True, False, True]
    assert last.scored.score.tolist() == rewards[[1, 3]].tolist()
    assert last.scored[PrefixScores()].shape == last.scored.input_ids.shape
    for row, text in zip((1, 3), range(2), strict=True):
        ids = last.scored.input_ids[text][last.scored.attention_mask[text]].tolist()
        assert ids == [*before.input_ids[row][before.attention_mask[row]].tolist(), EOS]
    waiting = [False] * 4 if mode is AutoresetMode.SAME_STEP else [False, True, False, True]
    assert base.ended.tolist() == waiting


def test_what_was_read_stays_as_it_was(tiny):
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED, **tiny)
    base = envs.unwrapped
    envs.reset(seed=0, options={"max_new_tokens": 9})
    envs.step(np.array([40, 40]))
    last, now, ended = base.last_step, base.completions, base.ended
    copies = [one.clone() for one in (now.input_ids, now.attention_mask, now.completion_mask)]
    envs.step(np.array([EOS, 50]))
    assert last.tokens.tolist() == [40, 40]
    assert not last.finished.any()
    assert not ended.any()
    for one, copy in zip(
        (now.input_ids, now.attention_mask, now.completion_mask), copies, strict=True
    ):
        assert one.equal(copy)


class CountsTokens(gym.Wrapper):
    """Works on any stack, since it reads from the text environment."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["so_far"] = int(self.unwrapped.completions.completion_mask.sum())
        return observation, reward, terminated, truncated, info


def test_a_wrapper_of_ones_own_reads_through_the_stack(tiny):
    env = gym.wrappers.TransformObservation(
        gym.make("ABC-RLHF-v0", **tiny), lambda observation: observation["input_ids"] * 0, None
    )
    env = CountsTokens(env)
    env.reset(seed=0, options={"max_new_tokens": 3})
    assert [env.step(40)[-1]["so_far"] for _ in range(3)] == [1, 2, 3]
