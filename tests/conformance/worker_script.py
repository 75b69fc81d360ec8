"""Plays environments in worker processes: KIND START_METHOD ENV_ID FOLDER; see test_workers.py."""

from __future__ import annotations

import functools
import sys

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.vec_env import SubprocVecEnv


def main(kind, start_method, env_id, folder):
    torch.set_num_threads(2)
    torch.ones(3000, 300) @ torch.ones(300, 300)  # The pool of threads is in use before a fork.
    arguments = {"min_new_tokens": 4, "max_new_tokens": 4, "prompts": ["I", "This film"]}
    for name, part in (("tokenizer", "lm"), ("reward_model", "rm"), ("model", "lm")):
        if name != "model" or "Features" in env_id:
            arguments[name] = f"{folder}/{part}"
    first = 2 if "Features" in env_id else 5  # one of four actions, or a token that is not EOS
    # The prefix has a fresh worker import textgym, which registers the ids.
    make = functools.partial(gym.make, f"textgym:{env_id}", **arguments)
    if kind == "async":
        envs = AsyncVectorEnv([make, make], context=start_method)
        envs.reset(seed=3)
    else:
        envs = SubprocVecEnv([make, make], start_method=start_method)
        envs.seed(3)
        envs.reset()
    rewards = [envs.step(np.array([first, first + 1]))[1] for _ in range(4)]
    envs.close()
    singles = [make(), make()]
    for row, env in enumerate(singles):
        env.reset(seed=3 + row)
        alone = [env.step(first + row)[1] for _ in range(4)]
        np.testing.assert_allclose(np.array(rewards)[:, row], alone, atol=1e-5)
    print("same as alone")


if __name__ == "__main__":
    main(*sys.argv[1:])
