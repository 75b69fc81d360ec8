"""The vector form of the wrapper that tells which actions are legal."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from textgym.wrappers.action_mask import masks_tokens
from textgym.wrappers.vector._base import TextVectorWrapper, put
from textgym.wrappers.vector.top_k_actions import TopKActions

__all__ = ["ActionMask"]


class ActionMask(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.ActionMask`.

    ``infos["action_mask"]`` is int8 of shape (num_envs, num_actions): at every reset for the rows
    that were reset, at every step for all rows but those that wait to be reset
    (``AutoresetMode.DISABLED``). It always speaks about the state that comes next.

    Args:
        env: A batched text environment, with any wrappers; its actions must be tokens or
            candidates.

    Raises:
        InvalidArgumentError: If the environment cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import ActionMask
        >>> envs = ActionMask(gym.make_vec("ABC-RLHF-v0", num_envs=4))
        >>> observations, infos = envs.reset(seed=0)
        >>> infos["action_mask"].shape, envs.action_masks().shape
        ((4, 4096), (4, 4096))
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._masks_tokens = masks_tokens(
            env, env.single_action_space, self._text_env.single_action_space, TopKActions
        )

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, shape (num_envs, num_actions), bool."""
        if self._masks_tokens:
            return self._text_env.task.action_masks(self._text_env.num_new_tokens)
        num_actions = self.single_action_space.n  # type: ignore[attr-defined]
        return np.ones((self.num_envs, num_actions), dtype=np.bool_)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        self._put(infos, self._rows_to_reset(options))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step; the masks are those of the new states."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._put(infos, self._acted | ~self._text_env.ended)
        return observations, rewards, terminated, truncated, infos

    def _put(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        put(infos, "action_mask", self.action_masks().astype(np.int8), rows)
