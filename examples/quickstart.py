"""The environment in twenty lines: make it, play an episode, look at the credit of its tokens.

python examples/quickstart.py --episodes 3
"""

from __future__ import annotations

import argparse

import gymnasium as gym

import textgym  # noqa: F401  (registers the environments)
from textgym.wrappers import CreditAssignment


def main(episodes: int) -> None:
    env = gym.make("ABC-RLHF-v0", render_mode="ansi", action_mask_in_info=True)
    env = CreditAssignment(env, "abc")  # adds info["credit"] when an episode ends
    env.action_space.seed(0)
    for seed in range(episodes):
        _, info = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            # Random actions. The mask keeps them from ending the text too early.
            action = env.action_space.sample(mask=info["action_mask"])
            _, _, terminated, truncated, info = env.step(action)
        print(env.render())
        print(f"score {info['score']:+.3f} = sum of credit {info['credit'].sum():+.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=3)
    main(parser.parse_args().episodes)
