"""All agents of agents.py: how each is run, under which rewards, and for how long.

Settings were chosen on seed 0 under sparse reward, in a few trials for each algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO

from reports.agents import ABC, REWARDS, SPARSE
from textgym import agents

from .episodes import FEATURES, NUM_TOKENS, TOKENS
from .language_models import Run, at_random, bundled
from .sb3_agents import language_model, on_features

__all__ = ["AGENTS", "PACKAGES", "Entry", "train"]

PACKAGES = ("textgym", "torch", "transformers", "gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class Entry:
    """An agent, the rewards that make sense for it, and how long it trains."""

    run: Run
    rewards: tuple[str, ...]
    timesteps: int


_PPO = {
    "learning_rate": 1e-3,
    "n_steps": 2 * NUM_TOKENS,
    "batch_size": 256,
    "n_epochs": 4,
    "gae_lambda": 1.0,
}
_A2C = {"learning_rate": 3e-3, "n_steps": NUM_TOKENS, "use_rms_prop": False}
_DQN = {
    "learning_rate": 5e-4,
    "learning_starts": 2_000,
    "train_freq": 1,
    "gradient_steps": 4,
    "batch_size": 256,
    "buffer_size": 50_000,
    "target_update_interval": 2_000,
    "exploration_fraction": 0.3,
    "exploration_final_eps": 0.02,
}
AGENTS: dict[str, Entry] = {
    "random, 16 likeliest": Entry(at_random(FEATURES), (SPARSE,), 8_192),
    "SB3 PPO, MLP": Entry(on_features(PPO, **_PPO), REWARDS, 256_000),
    "SB3 A2C, MLP": Entry(on_features(A2C, **_A2C), REWARDS, 256_000),
    "SB3 DQN, MLP": Entry(on_features(DQN, **_DQN), REWARDS, 256_000),
    "MaskablePPO, MLP": Entry(on_features(MaskablePPO, **_PPO), REWARDS, 256_000),
    "random, all tokens": Entry(at_random(TOKENS), (SPARSE,), 8_192),
    "SB3 PPO, language model": Entry(language_model, REWARDS, 15_360),
    "PPO": Entry(bundled(agents.PPO), REWARDS, 20_480),
    "RLOO": Entry(bundled(agents.RLOO), (SPARSE, ABC), 20_480),
    "GRPO": Entry(bundled(agents.GRPO), (SPARSE, ABC), 20_480),
}


def train(scale: float, name: str, reward: str, seed: int) -> pd.DataFrame:
    """One run, a row per chunk of episodes; ``scale`` is a factor on its length."""
    entry = AGENTS[name]
    return entry.run(reward, seed, int(entry.timesteps * scale)).rows()
