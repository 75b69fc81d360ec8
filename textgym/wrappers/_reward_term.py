"""Base classes of the wrappers that add a term to the reward."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from textgym.envs.infos import put
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper

__all__ = ["RewardTerm", "TermReader", "VectorRewardTerm"]


class TermReader:
    """Computes the term of each row of a text environment, single or batched."""

    def begin(self, rows: np.ndarray) -> None:
        """Read the start states of rows that were just reset, bool, shape (num_envs,)."""

    def before_step(self) -> None:
        """Read the states that a step is about to change."""

    @abstractmethod
    def terms(self, going_on: np.ndarray) -> np.ndarray:
        """The terms of the step just taken.

        Args:
            going_on: Rows that got a token and whose episode goes on, bool, shape (num_envs,).

        Returns:
            float64, shape (num_envs,); where a row got no token, it means nothing.
        """


class RewardTerm(TextWrapper):
    """Adds a term to every reward and reports it in the info.

    Several such wrappers can be stacked. ``unshaped_reward`` is what the environment below all of
    them paid, and it and all terms sum to the reward.

    Attributes:
        term: The term's key in ``info``.
    """

    term: ClassVar[str]
    _term_reader: TermReader

    def __init__(self, env: gym.Env, needs_causal_reward_model: bool = False) -> None:
        super().__init__(env, needs_causal_reward_model)
        self._unshaped_return = self._shaped_return = 0.0

    def _begin(self, info: dict[str, Any]) -> None:
        self._unshaped_return = self._shaped_return = 0.0
        self._term_reader.begin(np.array([True]))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and add the term to the reward."""
        self._term_reader.before_step()
        observation, reward, terminated, truncated, info = self.env.step(action)
        term = float(self._term_reader.terms(np.array([not terminated]))[0])
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
    _term_reader: TermReader

    def __init__(self, env: VectorEnv, needs_causal_reward_model: bool = False) -> None:
        super().__init__(env, needs_causal_reward_model)
        self._unshaped_return = np.zeros(self.num_envs)
        self._shaped_return = np.zeros(self.num_envs)

    def _begin(self, rows: np.ndarray, infos: dict[str, Any]) -> None:
        self._unshaped_return[rows] = self._shaped_return[rows] = 0.0
        self._term_reader.begin(rows)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the term to the rewards of the rows that acted."""
        self._term_reader.before_step()
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        last = self._text_env.last_step
        acted, finished = last.tokens >= 0, last.finished
        term = np.where(acted, self._term_reader.terms(acted & ~finished), 0.0)
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
        self._unshaped_return[finished] = self._shaped_return[finished] = 0.0
        return observations, shaped, terminated, truncated, infos
