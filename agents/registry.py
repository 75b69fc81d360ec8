"""The bundled agents by name, and loading a checkpoint of any of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgym.checks import check_path
from textgym.errors import InvalidArgumentError

from .agent import Agent
from .checkpoint import agent_of_checkpoint
from .grpo import GRPO
from .ppo import PPO
from .rloo import RLOO

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

__all__ = ["AGENTS", "load_agent"]

AGENTS: dict[str, type[Agent]] = {agent.name.lower(): agent for agent in (PPO, RLOO, GRPO)}
"""The agents by name, in lower case."""


def load_agent(
    path: str | Path,
    env: gym.Env | VectorEnv | None = None,
    device: str | None = None,
    log_dir: str | Path | None = None,
    **own_parts: Any,
) -> Agent:
    """Restore the agent that wrote a checkpoint; the arguments are those of :meth:`Agent.load`.

    Raises:
        InvalidArgumentError: If the file or the environment cannot be used.
    """
    name = agent_of_checkpoint(check_path("path", path))
    if name not in AGENTS:
        raise InvalidArgumentError(
            "path", str(path), f"it is of an agent {name!r}; there are {', '.join(AGENTS)}"
        )
    return AGENTS[name].load(path, env, device, log_dir, **own_parts)
