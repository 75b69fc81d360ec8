"""RLlib's PPO, as it comes, on text: a small network chooses among the 16 likeliest tokens.

The score comes with the last token, and a network that starts from nothing needs more than 50
iterations before it writes visibly better. Twenty show how it is done.

RLlib asks for one exact version of Gymnasium, so it lives in an environment of its own:
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
        # What stands before the colon is imported, so workers know the id, too.
        .environment("textgym:ABC-RLHF-Features-v0")
        .env_runners(
            num_env_runners=0,  # sample in this process; more of them sample side by side
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
        # The reported mean is over the episodes of one iteration: those of one policy.
        .reporting(metrics_num_episodes_for_smoothing=NUM_ENVS * NUM_STEPS // 16)
        .debugging(seed=seed)
    )
    agent = config.build_algo()
    means = []
    for iteration in range(iterations):
        sampled = agent.train()["env_runners"]
        means.append(sampled["episode_return_mean"])  # the score: nothing else is paid
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
