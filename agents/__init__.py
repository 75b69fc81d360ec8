"""Agents that come with textgym: a token-level PPO, with its policy and its rollout."""

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
