"""What the vector forms of the wrappers have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from textgym.envs import TextGenerationVectorEnv
from textgym.wrappers._text_env import find_text_env

__all__ = ["TextVectorWrapper", "put"]


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
