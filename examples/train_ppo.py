"""Train the bundled PPO with Attention-Based Credit on batched episodes, then write a review.

python examples/train_ppo.py --iterations 20
"""

from __future__ import annotations

import argparse

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.wrappers.vector import CreditAssignment


def main(iterations: int, seed: int = 0) -> None:
    # DISABLED: finished rows wait for the others, so that the agent collects whole episodes.
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=16, autoreset_mode=AutoresetMode.DISABLED)
    envs = CreditAssignment(envs, "abc")
    agent = PPO("embedded", envs, seed=seed)
    # An iteration is 16 episodes of at most 16 tokens. The callback counts the iterations.
    agent.learn(
        total_timesteps=iterations * 16 * 16,
        progress_bar=True,
        callback=lambda row: row["time/iteration"] < iterations,
    )
    first, last = agent.history[0], agent.history[-1]
    print(f"mean score {first['rollout/score_mean']:+.2f} -> {last['rollout/score_mean']:+.2f}")
    print(f"log: {agent.log_dir}")

    env = gym.make("ABC-RLHF-v0", action_mask_in_info=True)
    observation, info = env.reset(seed=seed)
    terminated = False
    while not terminated:
        action, _ = agent.predict(observation, action_masks=info["action_mask"])
        observation, _, terminated, _, info = env.step(action)
    print(f"{info['prompt']} |{info['completion']}  (score {info['score']:+.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.iterations, arguments.seed)
