"""Train low-rank adapters of any language model against a reward model with another tokenizer.

python examples/other_models.py --iterations 10
python examples/other_models.py --policy smollm2      # SmolLM2-135M: textgym[smollm2], minutes

The policy's tokens are turned into text, an encoder with a WordPiece tokenizer scores the text, and
its attention comes back as credit of the policy's tokens. Needs textgym[lora].
"""

from __future__ import annotations

import argparse

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO
from textgym.wrappers.vector import CreditAssignment


def main(policy: str, reward_model: str, iterations: int, episodes: int, seed: int) -> None:
    envs = gym.make_vec(
        "ABC-RLHF-v0",
        num_envs=episodes,
        autoreset_mode=AutoresetMode.DISABLED,
        tokenizer=policy,
        reward_model=reward_model,
    )
    envs = CreditAssignment(envs, "abc")
    agent = PPO(
        policy,
        envs,
        lora={"r": 16, "lora_alpha": 32},
        episodes_per_iteration=episodes,
        minibatch_size=min(episodes, 8),
        learning_rate=1e-3,
        kl_coef=0.05,
        seed=seed,
    )
    trained = sum(parameter.numel() for parameter in agent.trained_parameters.values())
    print(f"{trained:,} of {agent.policy.model.num_parameters():,} parameters are trained")
    agent.learn(
        total_timesteps=iterations * episodes * 16,
        progress_bar=True,
        callback=lambda row: row["time/iteration"] < iterations,
    )
    first, last = agent.history[0], agent.history[-1]
    print(f"mean score {first['rollout/score_mean']:+.2f} -> {last['rollout/score_mean']:+.2f}")
    print(f"KL {last['rollout/kl']:.1f} nats, {last['time/seconds'] / iterations:.1f} s/iteration")
    agent.save_pretrained(agent.log_dir / "policy")  # adapters merged into the weights
    print(f"policy for transformers: {agent.log_dir / 'policy'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="embedded", help="folder, hub id, GGUF file or smollm2")
    parser.add_argument("--reward-model", default="gold", help="folder or hub id of a classifier")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=16, help="per iteration")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(**vars(arguments))
