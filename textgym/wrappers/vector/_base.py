"""What the vector forms have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from textgym.envs import TextGenerationVectorEnv
from textgym.wrappers._text_env import find_text_env

__all__ = ["RewardTerm", "TextVectorWrapper", "put"]


def put(infos: dict[str, Any], name: str, values: np.ndarray, rows: np.ndarray) -> None:
    """Add an info of some rows, with its mask beside it; the other rows hold zeros.

    Args:
        infos: The infos of a vector environment, which are changed.
        name: The key.
        values: Shape (num_envs, ...).
        rows: Which rows it is about, shape (num_envs,), bool.
    """
    values, rows = np.array(values), np.array(rows)
    values[~rows] = 0
    infos[name], infos[f"_{name}"] = values, rows


class TextVectorWrapper(VectorWrapper):
    """Knows the text environment, and where the infos of a finished episode belong."""

    def __init__(self, env: VectorEnv, needs_causal_reward_model: bool = False) -> None:
        self._text_env: TextGenerationVectorEnv = find_text_env(
            env, TextGenerationVectorEnv, needs_causal_reward_model
        )
        super().__init__(env)

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        return np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask

    @property
    def _acted(self) -> np.ndarray:
        """Rows that the last step appended a token to, shape (num_envs,), bool."""
        return self._text_env.tokens_taken >= 0

    @property
    def _finished(self) -> np.ndarray:
        """Rows whose episode the last step ended, shape (num_envs,), bool."""
        finished = np.zeros(self.num_envs, dtype=np.bool_)
        finished[self._text_env.scored_rows] = True
        return finished

    @property
    def _restarts_at_once(self) -> bool:
        return self._text_env.autoreset_mode is AutoresetMode.SAME_STEP

    def _final_infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        """The dict that the infos of finished episodes belong in."""
        return infos.setdefault("final_info", {}) if self._restarts_at_once else infos


class RewardTerm(TextVectorWrapper):
    """The vector form of the single environments' base class of the same name.

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
        """What is added to the rewards of the step that was just made, shape (num_envs,).

        Args:
            acted: Rows that took part in the step, shape (num_envs,), bool.
            finished: Those of them whose episode it ended, shape (num_envs,), bool.
        """

    def _clear(self, rows: np.ndarray) -> None:
        """Forget the episodes of some rows, shape (num_envs,), bool."""
        self._unshaped_return[rows] = 0.0
        self._shaped_return[rows] = 0.0

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        result = self.env.reset(seed=seed, options=options)
        self._clear(self._rows_to_reset(options))
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the term to the rewards of the rows that acted."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        acted, finished = self._acted, self._finished
        term = np.where(acted, self._term(acted, finished), 0.0)
        shaped = rewards + term
        if "unshaped_reward" not in infos:
            put(infos, "unshaped_reward", rewards, acted)
        put(infos, self.term, term, acted)
        self._unshaped_return += infos["unshaped_reward"]
        self._shaped_return += np.where(acted, shaped, 0.0)
        over = finished | (acted & truncated)
        if over.any():
            final = self._final_infos(infos)
            if self._restarts_at_once:
                for name in ("unshaped_reward", self.term):
                    put(final, name, infos[name], over)
            put(final, "unshaped_return", self._unshaped_return, over)
            put(final, "shaped_return", self._shaped_return, over)
        self._clear(finished)
        return observations, shaped, terminated, truncated, infos
