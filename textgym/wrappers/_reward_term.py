"""What wrappers have in common that add a term to the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

__all__ = ["RewardTerm"]


class RewardTerm(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs, ABC):
    """Adds a term to every reward and names all terms in the info.

    ``unshaped_reward`` is what the environment paid below all such wrappers. The terms of all of
    them and it sum to the reward.

    Attributes:
        term: The term's key in ``info``.
    """

    term: ClassVar[str]

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._unshaped_return = self._shaped_return = 0.0

    @abstractmethod
    def _term(self, terminated: bool) -> float:
        """What is added to the reward of the step that was just made."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._unshaped_return = self._shaped_return = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and add the term to the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        term = self._term(terminated)
        shaped = float(reward) + term
        info.setdefault("unshaped_reward", float(reward))
        info[self.term] = term
        self._unshaped_return += info["unshaped_reward"]
        self._shaped_return += shaped
        if terminated or truncated:
            info |= {
                "unshaped_return": self._unshaped_return,
                "shaped_return": self._shaped_return,
            }
        return observation, shaped, terminated, truncated, info
