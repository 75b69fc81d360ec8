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


def run_episode(env, seed, options=None, end_early=False):
    """Rewards, infos and number of steps of one scripted episode."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed, options=options)
    rewards, infos, done = [], [], False
    while not done:
        action = EOS if end_early and len(rewards) == 3 else int(rng.integers(3, 300))
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
        done = terminated or truncated
    return np.array(rewards), infos


def finished_episodes(envs, seed, steps=40):
    """(completion as scored, rewards, final infos) of every episode that ends, in any mode."""
    mode = envs.unwrapped.autoreset_mode
    rng = np.random.default_rng(seed)
    envs.reset(seed=seed)
    paid = [[] for _ in range(N)]
    waiting = np.zeros(N, dtype=bool)
    for _ in range(steps):
        actions = rng.integers(3, 300, size=N)
        actions[rng.random(N) < 0.1] = EOS
        _, rewards, terminated, _, infos = envs.step(actions)
        for row in np.flatnonzero(~waiting):
            paid[row].append(rewards[row])
        ended = terminated & ~waiting
        place = infos.get("final_info", {}) if mode is AutoresetMode.SAME_STEP else infos
        for row in np.flatnonzero(ended):
            keys = [key for key in place if not key.startswith("_") and f"_{key}" in place]
            final = {key: place[key][row] for key in keys if place[f"_{key}"][row]}
            last = envs.unwrapped.last_step
            batch, index = last.scored, np.flatnonzero(last.finished).tolist().index(row)
            yield batch.select(slice(index, index + 1)), np.array(paid[row]), final
            paid[row] = []
        waiting = terminated.copy()
        if mode is AutoresetMode.SAME_STEP:
            waiting[:] = False
        if mode is AutoresetMode.DISABLED and waiting.any():
            envs.reset(options={"reset_mask": waiting})
            waiting[:] = False
