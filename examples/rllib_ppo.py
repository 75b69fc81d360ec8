"""RLlib's own PPO on text: a small network chooses among the 4 most likely tokens.

The score comes with the last token. Twenty iterations are 82,000 steps; on seed 0 they take the
mean score from +0.1 to +2.0 standard deviations of the untrained policy's score.

RLlib requires one exact version of Gymnasium, so it gets a virtual environment of its own:
``make rllib-example`` makes it and runs this script.

python examples/rllib_ppo.py --iterations 20
"""

from __future__ import annotations

import argparse

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

NUM_ENVS, NUM_STEPS = 64, 64  # each row writes four texts of 16 tokens


def main(iterations: int, seed: int = 0) -> None:
    config = (
        PPOConfig()
        # Workers import the module before the colon, so they know the id, too.
        .environment("textgym:ABC-RLHF-Features-v0")
        .env_runners(
            num_env_runners=0,  # sample in this process; larger numbers sample in parallel
            num_envs_per_env_runner=NUM_ENVS,
            gym_env_vectorize_mode="vector_entry_point",  # the batched form of the environment
        )
        .training(
            gamma=1.0,
            lambda_=1.0,
            lr=1e-3,
            train_batch_size_per_learner=NUM_ENVS * NUM_STEPS,
            minibatch_size=512,
            num_epochs=8,
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=False))
        # Average the reported mean over the episodes of one iteration, which come from one policy.
        .reporting(metrics_num_episodes_for_smoothing=NUM_ENVS * NUM_STEPS // 16)
        .debugging(seed=seed)
    )
    agent = config.build_algo()
    means = []
    for iteration in range(iterations):
        sampled = agent.train()["env_runners"]
        means.append(sampled["episode_return_mean"])  # the score, because nothing else is paid
        print(
            f"iteration {iteration:3d}  {sampled['num_episodes']} texts  "
            f"mean score {means[-1]:+.2f}",
            flush=True,
        )
    agent.stop()
    print(f"mean score {means[0]:+.2f} -> {means[-1]:+.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.iterations, arguments.seed)
