"""What the vector forms of the wrappers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from textgym.envs import TextGenerationVectorEnv
from textgym.wrappers._text_env import find_text_env

__all__ = ["TextVectorWrapper"]


class TextVectorWrapper(VectorWrapper):
    """A vector wrapper that knows the text environment and where final infos belong.

    Args:
        env: The environment to wrap.
        needs_causal_reward_model: Whether the reward model must not look ahead of a token.

    Raises:
        InvalidArgumentError: If the base environment or its reward model cannot be used.
    """

    def __init__(self, env: VectorEnv, needs_causal_reward_model: bool = False) -> None:
        self._text_env = find_text_env(env, TextGenerationVectorEnv, needs_causal_reward_model)
        super().__init__(env)

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        """The rows that a reset with these options restarts, bool, shape (num_envs,).

        Ask before the reset: a wrapper inside may take ``reset_mask`` out of the options, as
        Gymnasium's RecordEpisodeStatistics does.
        """
        mask = options.get("reset_mask") if isinstance(options, Mapping) else None
        return np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask

    def _clear(self, rows: np.ndarray) -> None:
        """Forget what is kept about the episodes of some rows, bool, shape (num_envs,)."""

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        rows = self._rows_to_reset(options)
        result = self.env.reset(seed=seed, options=options)
        self._clear(rows)
        return result

    @property
    def _restarts_at_once(self) -> bool:
        """Whether the step that ends an episode also starts the next one."""
        return self._text_env.autoreset_mode is AutoresetMode.SAME_STEP

    def _final_infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        """The dict that the infos of finished episodes belong in."""
        return infos.setdefault("final_info", {}) if self._restarts_at_once else infos
