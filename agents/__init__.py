"""Agents that come with textgym.

>>> agent = PPO("embedded", envs, seed=0)  # doctest: +SKIP
>>> agent.learn(total_timesteps=20_000, progress_bar=True)  # doctest: +SKIP
"""

from .policy import ActionRules, LanguageModelPolicy
from .ppo import PPO, PPOConfig
from .rollout import Rollout, collect_episodes

__all__ = [
    "PPO",
    "ActionRules",
    "LanguageModelPolicy",
    "PPOConfig",
    "Rollout",
    "collect_episodes",
]
