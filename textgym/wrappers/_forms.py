"""What the single forms of the wrappers have in common, and what the vector forms have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from textgym.envs import TextGenerationEnv, TextGenerationVectorEnv
from textgym.wrappers._text_env import find_text_env

__all__ = ["TextVectorWrapper", "TextWrapper"]


class TextWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A wrapper that knows the text environment.

    Args:
        env: The environment to wrap.
        needs_causal_reward_model: Whether the reward model must not look ahead of a token.

    Raises:
        InvalidArgumentError: If the base environment or its reward model cannot be used.
    """

    def __init__(self, env: gym.Env, needs_causal_reward_model: bool = False) -> None:
        self._text_env = find_text_env(env, TextGenerationEnv, needs_causal_reward_model)
        super().__init__(env)

    def _begin(self, info: dict[str, Any]) -> None:
        """An episode was just started, with this info."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = super().reset(seed=seed, options=options)
        self._begin(info)
        return observation, info


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

    def _begin(self, rows: np.ndarray, infos: dict[str, Any]) -> None:
        """Episodes of some rows, bool, shape (num_envs,), were just started, with these infos."""

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        # Looked up before the reset: a wrapper inside may take it out of the options, as
        # Gymnasium's RecordEpisodeStatistics does.
        mask = options.get("reset_mask") if isinstance(options, Mapping) else None
        rows = np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask
        observations, infos = self.env.reset(seed=seed, options=options)
        self._begin(rows, infos)
        return observations, infos

    @property
    def _restarts_at_once(self) -> bool:
        """Whether the step that ends an episode also starts the next one."""
        return self._text_env.autoreset_mode is AutoresetMode.SAME_STEP

    def _final_infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        """The dict that the infos of finished episodes belong in."""
        return infos.setdefault("final_info", {}) if self._restarts_at_once else infos
