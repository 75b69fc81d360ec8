"""Base classes of the wrappers that add a term to the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.envs.infos import put
from textgym.wrappers._vector import TextVectorWrapper

__all__ = ["RewardTerm", "VectorRewardTerm"]


class RewardTerm(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs, ABC):
    """Adds a term to every reward and reports it in the info.

    Several such wrappers can be stacked. ``unshaped_reward`` is what the environment below all of
    them paid, and it and all terms sum to the reward.

    Attributes:
        term: The term's key in ``info``.
    """

    term: ClassVar[str]

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._unshaped_return = self._shaped_return = 0.0

    @abstractmethod
    def _term(self, terminated: bool) -> float:
        """What is added to the reward of the step just taken."""

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


class VectorRewardTerm(TextVectorWrapper):
    """The vector form of :class:`RewardTerm`.

    Attributes:
        term: The term's key in ``infos``.
    """

    term: ClassVar[str]

    def __init__(self, env: VectorEnv, needs_causal_reward_model: bool = False) -> None:
        super().__init__(env, needs_causal_reward_model)
        self._unshaped_return = np.zeros(self.num_envs)
        self._shaped_return = np.zeros(self.num_envs)

    @abstractmethod
    def _term(self, acted: np.ndarray, finished: np.ndarray) -> np.ndarray:
        """What is added to the rewards of the step just taken, float64, shape (num_envs,).

        Args:
            acted: Rows that got a token, bool, shape (num_envs,).
            finished: Those of them whose episode the step ended, bool, shape (num_envs,).
        """

    def _clear(self, rows: np.ndarray) -> None:
        self._unshaped_return[rows] = 0.0
        self._shaped_return[rows] = 0.0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the term to the rewards of the rows that acted."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        last = self._text_env.last_step
        acted, finished = last.tokens >= 0, last.finished
        term = np.where(acted, self._term(acted, finished), 0.0)
        shaped = rewards + term
        if "unshaped_reward" not in infos:
            put(infos, "unshaped_reward", rewards[acted], acted)
        put(infos, self.term, term[acted], acted)
        self._unshaped_return += infos["unshaped_reward"]
        self._shaped_return += np.where(acted, shaped, 0.0)
        over = finished | (acted & truncated)
        if over.any():
            final = self._final_infos(infos)
            if self._restarts_at_once:
                for name in ("unshaped_reward", self.term):
                    put(final, name, infos[name][over], over)
            put(final, "unshaped_return", self._unshaped_return[over], over)
            put(final, "shaped_return", self._shaped_return[over], over)
        self._clear(finished)
        return observations, shaped, terminated, truncated, infos
