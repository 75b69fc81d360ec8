"""The bundled agents, token-level PPO, RLOO and GRPO, with their policy and rollouts."""

from .agent import Agent
from .config import AgentConfig
from .critics import Critic
from .distribution import ActionRules
from .grpo import GRPO, GRPOConfig
from .kl_control import KLController
from .policy import LanguageModelPolicy
from .ppo import PPO, PPOConfig
from .processes import Processes
from .registry import AGENTS, load_agent
from .rloo import RLOO, RLOOConfig
from .rollout import Rollout, collect_episodes
from .sampling import SampledCompletion, Sampler, SamplingRequest

__all__ = [
    "AGENTS",
    "GRPO",
    "PPO",
    "RLOO",
    "ActionRules",
    "Agent",
    "AgentConfig",
    "Critic",
    "GRPOConfig",
    "KLController",
    "LanguageModelPolicy",
    "PPOConfig",
    "Processes",
    "RLOOConfig",
    "Rollout",
    "SampledCompletion",
    "Sampler",
    "SamplingRequest",
    "collect_episodes",
    "load_agent",
]
