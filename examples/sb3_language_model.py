"""A language model as the policy of Stable-Baselines3's PPO, learning from hindsight credit.

PPO is SB3's own. One call of the reward model scores all texts that end in a step. One callback
replaces the rewards of the rollout, where the score comes last, by the credit of each token. The
other adds a penalty for leaving the model that training started from.

python examples/sb3_language_model.py --iterations 20
"""

from __future__ import annotations

import argparse

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import textgym  # noqa: F401  (registers the environments)
from textgym.agents.sb3 import (
    HindsightCreditCallback,
    KLPenaltyCallback,
    LanguageModelPolicy,
    TextVecEnv,
)
from textgym.wrappers import IllegalToken, vector

NUM_ENVS, NUM_STEPS = 16, 48  # a rollout holds about four texts of each row


def main(iterations: int, seed: int = 0) -> None:
    envs = gym.make_vec("ABC-RLHF-v0", NUM_ENVS, autoreset_mode=AutoresetMode.DISABLED)
    envs = vector.IllegalToken(envs)  # so that the policy knows when EOS has to wait
    env = VecMonitor(TextVecEnv(vector.CreditAssignment(envs, "abc")))
    agent = PPO(
        LanguageModelPolicy,
        env,
        policy_kwargs={"model": "embedded"},
        learning_rate=1e-4,
        n_steps=NUM_STEPS,
        batch_size=64,
        n_epochs=2,
        gamma=1.0,
        vf_coef=0.1,
        seed=seed,
    )
    before, _ = evaluate_policy(agent, env, n_eval_episodes=64, deterministic=False)
    agent.learn(
        total_timesteps=iterations * NUM_ENVS * NUM_STEPS,
        callback=[HindsightCreditCallback(), KLPenaltyCallback(coef=0.05)],
    )
    after, _ = evaluate_policy(agent, env, n_eval_episodes=64, deterministic=False)
    print(f"mean score {before:+.2f} -> {after:+.2f}")

    single = IllegalToken(gym.make("ABC-RLHF-v0"))
    observation, _ = single.reset(seed=seed)
    terminated = False
    while not terminated:
        action, _ = agent.predict(observation)
        observation, _, terminated, _, info = single.step(action)
    print(f"{info['prompt']} |{info['completion']}  (score {info['score']:+.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.iterations, arguments.seed)
