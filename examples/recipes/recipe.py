"""What the three recipes share: the paper's settings, and a run from prompts to a summary.

"Dense Reward for Free in RLHF" (Chan et al., 2024, arXiv 2402.00782). The settings are those of the
authors' scripts, https://github.com/XanderJC/attention-based-credit at commit 0a08591, folder
experiments/, and of the library that they build on, trl 0.7.4 (trl/trainer/ppo_config.py).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import textgym  # noqa: F401  (registers the environments)
from textgym.agents import PPO, collect_episodes
from textgym.credit import get_credit_assigner
from textgym.models import load_language_model
from textgym.prompts import PromptSource, read_dataset
from textgym.reward_training import RewardRecipe, fit_reward_model, split_examples
from textgym.wrappers.vector import CreditAssignment

PPO_SETTINGS = {
    "learning_rate": 1.41e-5,  # experiments/bash
    "num_epochs": 4,
    "minibatch_size": 1,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "clip_coef": 0.2,
    "vf_coef": 0.1,
    "vf_clip_coef": 0.2,
    "kl_coef": 0.2,
    "kl_target": 6.0,
    "kl_horizon": 10_000.0,
    "max_grad_norm": 1e6,  # trl does not clip gradients.
}
LORA = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.0}
HELD_OUT_ONE_IN = 20


def parse(
    add_arguments: Callable[[argparse.ArgumentParser], None],
    description: str,
    *,
    iterations: int,
    episodes: int,
    min_new_tokens: int,
    max_new_tokens: int,
) -> argparse.Namespace:
    """The arguments of a recipe and those that all have, with the paper's values as defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--reward-epochs", type=float, help="passes over the examples, if a reward model is made")
    add("--prefix-share", type=float, default=0.0, help="see textgym train-reward; paper: 0")
    add("--limit", type=int, help="use so many rows of each dataset, the first ones")
    add("--credit", default="abc", help="abc; the controls are sparse, uniform and others")
    add("--beta", type=float, default=0.8, help="share of the score that abc redistributes")
    add("--iterations", type=int, default=iterations, help="of PPO")
    add("--episodes", type=int, default=episodes, help="per iteration")
    add("--min-new-tokens", type=int, default=min_new_tokens)
    add("--max-new-tokens", type=int, default=max_new_tokens)
    add("--evaluate", type=int, default=128, help="episodes on held-out prompts, before and after")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("recipe"), help="folder for models and logs")
    return parser.parse_args()


def rows(dataset: str, limit: int | None, **where: Any) -> list[dict[str, Any]]:
    """The rows of a file, or of the training split of a hub dataset."""
    if where and not Path(dataset).is_file():
        import datasets

        table = datasets.load_dataset(dataset, split="train", **where)
    else:
        table = read_dataset(dataset, "dataset")
    return list(itertools.islice(table, limit))


def make_reward_model(
    base: str, examples: Sequence[Any], recipe: RewardRecipe, arguments: argparse.Namespace
) -> str:
    """Train a reward model; returns its folder."""
    folder = arguments.output / "reward_model"
    train, held_out = split_examples(examples, HELD_OUT_ONE_IN)
    report = fit_reward_model(base, train, held_out, folder, recipe, arguments.device)
    shares = ", ".join(f"{float(k):.0%}: {v:.1%}" for k, v in report["accuracy"].items())
    print(f"reward model: accuracy on {len(held_out)} held-out examples, by share of the text")
    print(f"  {shares}")
    return str(folder)


def load_large_policy(name: str, arguments: argparse.Namespace) -> Any:
    """A policy whose weights stay frozen below adapters: in bfloat16, or in 4 bits as in the paper.

    4 bits need bitsandbytes and a GPU.
    """
    if not arguments.four_bit:
        return load_language_model(name, dtype="bfloat16")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        name, quantization_config=four_bit, device_map={"": arguments.device}
    )


def train(
    policy: Any,
    tokenizer: Any,
    reward_model: Any,
    prompts: tuple[PromptSource, PromptSource],
    arguments: argparse.Namespace,
    **settings: Any,
) -> None:
    """Train with PPO, measure on held-out prompts before and after, and print a summary.

    Args:
        policy: Name or loaded model.
        tokenizer: Of the policy.
        reward_model: A folder, a hub id or a loaded one.
        prompts: To train on, and held out.
        arguments: Of the command line.
        **settings: Of PPO, where a recipe differs from :data:`PPO_SETTINGS`.
    """
    given = {"beta": arguments.beta} if arguments.credit == "abc" else {}
    credit = get_credit_assigner(arguments.credit, **given)
    envs, held_out_envs = (
        CreditAssignment(
            gym.make_vec(
                "ABC-RLHF-v0",
                num_envs=arguments.episodes,
                autoreset_mode=AutoresetMode.DISABLED,
                tokenizer=tokenizer,
                reward_model=reward_model,
                prompts=source,
                min_new_tokens=arguments.min_new_tokens,
                max_new_tokens=arguments.max_new_tokens,
                normalize_score=False,  # as in the paper
                device=arguments.device,
            ),
            credit,
        )
        for source in prompts
    )
    agent = PPO(
        policy,
        envs,
        episodes_per_iteration=arguments.episodes,
        device=arguments.device,
        dtype="bfloat16" if arguments.device.startswith("cuda") else None,
        log_dir=arguments.output / "log",
        seed=arguments.seed,
        **(PPO_SETTINGS | settings),
    )
    trained = sum(parameter.numel() for parameter in agent.trained_parameters.values())
    print(f"policy: {trained:,} of {agent.policy.model.num_parameters():,} parameters are trained")
    agent.learn(
        arguments.iterations * arguments.episodes * arguments.max_new_tokens,
        progress_bar=True,
        callback=lambda row: row["time/iteration"] < arguments.iterations,
    )
    size = f"{arguments.iterations} iterations of {arguments.episodes} episodes"
    print(f"PPO with {credit!r}, {size}")
    for when, of in (("before", agent.ref_policy), ("after", agent.policy)):
        score, half, kl = measure(agent, of, held_out_envs, arguments.evaluate)
        shown = f"score {score:+.2f} ± {half:.2f}, KL {kl:.2f} nats"
        print(f"  {when:6} training, on held-out prompts: {shown}")
    agent.save(arguments.output / "agent")
    print(f"agent, log and reward model: {arguments.output}")


def measure(agent: PPO, policy: Any, envs: Any, episodes: int) -> tuple[float, float, float]:
    """Mean score with the half-width of its 95% interval, and mean exact KL, of fresh episodes."""
    num_episodes = max(2, episodes // envs.num_envs) * envs.num_envs
    rollout = collect_episodes(policy, envs, num_episodes, torch.Generator().manual_seed(10_000))
    kl = []
    for part in range(0, num_episodes, envs.num_envs):
        texts = [
            tensor[part : part + envs.num_envs].to(agent.config.device) for tensor in rollout.texts
        ]
        with torch.no_grad():
            compared = policy.compare(*texts, agent.ref_policy.completion_logits(*texts))
        kl.append(compared.kl.sum(dim=1).mean())
    half = 1.96 * rollout.scores.std() / num_episodes**0.5
    return rollout.scores.mean().item(), half.item(), torch.stack(kl).mean().item()
