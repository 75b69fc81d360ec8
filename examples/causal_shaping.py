"""Causal shaping: every step pays a reward, so any agent can learn from it.

The agent here is the bundled PPO. It gets no credit, only the rewards, like a generic agent. The
shaping terms of an episode sum to zero, so its return is still the score.

python examples/causal_shaping.py --iterations 20
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.wrappers import AttentionShaping
from textgym.wrappers.vector import AttentionShaping as VectorAttentionShaping


def main(iterations: int, seed: int = 0) -> None:
    env = AttentionShaping(gym.make("ABC-RLHF-v0"))
    env.action_space.seed(seed)
    env.reset(seed=seed)
    rewards, terminated = [], False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        rewards.append(reward)
    print("rewards of one episode", np.round(rewards, 2))
    print(f"their sum {sum(rewards):+.4f}, the score {info['score']:+.4f}")

    envs = gym.make_vec("ABC-RLHF-v0", num_envs=16, autoreset_mode=AutoresetMode.DISABLED)
    agent = PPO("embedded", VectorAttentionShaping(envs), seed=seed)
    agent.learn(
        total_timesteps=iterations * 16 * 16,
        progress_bar=True,
        callback=lambda row: row["time/iteration"] < iterations,
    )
    first, last = agent.history[0], agent.history[-1]
    print(f"mean score {first['rollout/score_mean']:+.2f} -> {last['rollout/score_mean']:+.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.iterations, arguments.seed)
