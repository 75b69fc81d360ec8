"""What the tests of several wrappers share."""

from __future__ import annotations

from contextlib import contextmanager

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401

EOS = 2
N = 4
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def make_env(tiny, **changes):
    """A small single environment."""
    return gym.make("ABC-RLHF-v0", **{**tiny, **changes})


def make_envs(tiny, mode=AutoresetMode.NEXT_STEP, num_envs=N, **changes):
    """A small batched environment."""
    return gym.make_vec(
        "ABC-RLHF-v0", num_envs=num_envs, autoreset_mode=mode, **{**tiny, **changes}
    )


def texts(env):
    """Token ids of the texts so far, prompt and completion, one list per row."""
    now = env.unwrapped.completions
    return [ids[mask].tolist() for ids, mask in zip(now.input_ids, now.attention_mask, strict=True)]


def num_new_tokens(env):
    """How many tokens each completion has so far, shape (num_envs,)."""
    return env.unwrapped.completions.completion_mask.sum(1).numpy()


@contextmanager
def count_tokens(module):
    """A list that gets the number of tokens of every forward pass of a model, padding included."""
    sizes = []
    handle = module.register_forward_pre_hook(
        lambda _module, _arguments, keywords: sizes.append(keywords["input_ids"].numel()),
        with_kwargs=True,
    )
    try:
        yield sizes
    finally:
        handle.remove()


def play(env, actions, **reset):
    """What every step of one scripted episode returned, the reset first."""
    observation, info = env.reset(**reset)
    steps = [(observation, 0.0, False, False, info)]
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def scripted(num_actions, steps, seed=0, early_end=None):
    """Actions for N rows, with an early end now and then."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(3 if num_actions > 20 else 0, num_actions, size=(steps, N))
    if early_end is not None:
        actions[rng.random((steps, N)) < 0.1] = early_end
    return actions


def is_close(ours, theirs):
    """Raise unless both are equal, floats to the tolerance of another batch size."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs)
        for key in ours:
            is_close(ours[key], theirs[key])
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        for mine, other in zip(ours, theirs, strict=True):
            is_close(mine, other)
    elif isinstance(ours, np.ndarray | np.number | float):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    else:
        assert ours == theirs
