"""A task with a known answer: how far does an agent get, and is its credit right?

A program scores the texts, so the best score and the true contribution of every token are known.

python examples/planted.py --iterations 80 --credit shaping
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.planted import VOCABULARY
from textgym.wrappers.vector import CreditAssignment

NUM_ENVS = 64


def main(iterations: int, credit: str, seed: int = 0) -> None:
    torch.set_num_threads(1)  # with models so small, threads would only wait for each other
    envs = gym.make_vec(
        "ABC-RLHF-Planted-v0", num_envs=NUM_ENVS, autoreset_mode=AutoresetMode.DISABLED
    )
    envs = CreditAssignment(envs, credit)

    # On texts of random words, compare what each token got with what it contributed.
    envs.reset(seed=seed)
    rng = np.random.default_rng(seed)
    terminated = np.zeros(NUM_ENVS, dtype=bool)
    while not terminated.all():  # all texts have equally many tokens, so all end in the same step
        tokens = rng.integers(3, len(VOCABULARY), NUM_ENVS)  # no special tokens
        _, _, terminated, _, infos = envs.step(tokens)
    given, true = infos["credit"], infos["contributions"]  # (num_envs, max_new_tokens)
    print(f"{credit}: correlation with the true contributions {pearson(given, true):+.2f}")

    agent = PPO(
        "planted",
        envs,
        episodes_per_iteration=NUM_ENVS,
        minibatch_size=32,
        learning_rate=1e-3,
        ent_coef=0.02,  # keeps the policy from settling for the first good texts it finds
        kl_coef=0.0,  # the program cannot be fooled, so the policy may go anywhere
        kl_target=None,
        vf_clip_coef=None,
        seed=seed,
    )
    agent.learn(total_timesteps=iterations * true.size)
    best = infos["optimal_score"].mean()
    for row in agent.history[:: max(1, iterations // 8)] + agent.history[-1:]:
        score = row["rollout/score_mean"]
        print(
            f"iteration {row['time/iteration']:3d}  {row['time/seconds']:5.1f} s  "
            f"mean score {score:+6.2f}, {score / best:4.0%} of the optimum"
        )


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation over all tokens of all texts; 0 if one of the two is constant."""
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) if x.std() > 0 < y.std() else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--credit", default="shaping")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.iterations, arguments.credit, arguments.seed)
