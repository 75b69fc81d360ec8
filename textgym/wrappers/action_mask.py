"""Tells agents which actions are legal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.envs import TextEnvironment, TextGenerationEnv
from textgym.envs.infos import put
from textgym.errors import InvalidArgumentError
from textgym.wrappers._text_env import find_text_env, wrappers_of
from textgym.wrappers._vector import TextVectorWrapper
from textgym.wrappers.top_k_actions import TopKActions, VectorTopKActions

__all__ = ["ActionMask", "VectorActionMask", "legal_tokens", "masks_tokens"]


def legal_tokens(env: TextEnvironment) -> np.ndarray:
    """Which tokens may come next, bool, shape (num_envs, vocab_size)."""
    num_new_tokens = env.completions.completion_mask.sum(1).numpy()
    return env.task.action_masks(num_new_tokens)


def masks_tokens(
    env: Any, space: gym.Space, base_space: gym.Space, top_k_actions: type[Any]
) -> bool:
    """Whether the actions of an environment are tokens, and not candidates of ``TopKActions``.

    Args:
        env: The environment to wrap.
        space: The action space of one row.
        base_space: The action space of one row of the text environment.
        top_k_actions: The class ``TopKActions``, single or vector.

    Raises:
        InvalidArgumentError: If its actions are neither.
    """
    if space == base_space:
        return True
    for one in wrappers_of(env):
        if isinstance(one, top_k_actions) and space == spaces.Discrete(one.k):
            return False
    raise InvalidArgumentError(
        "env",
        env,
        f"its actions ({space}) are neither tokens nor candidates of TopKActions; put "
        "ActionMask below the wrapper that changes actions",
    )


class ActionMask(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Adds the mask of legal actions to every info, and has a method that returns it.

    EOS is illegal while fewer than ``min_new_tokens`` tokens have been generated. All other tokens
    are legal, and so are all candidates of :class:`textgym.wrappers.TopKActions`.

    MaskablePPO of sb3-contrib calls the method ``action_masks``. ``env.action_space.sample(mask)``
    takes the mask from ``info``. Spaces and rewards are those of the wrapped environment.

    | key in ``info`` | when        | type                  | meaning                |
    |-----------------|-------------|-----------------------|------------------------|
    | `action_mask`   | reset, step | int8 (num_actions,)   | 1 at the legal actions |

    Args:
        env: A text environment, with any wrappers; its actions must be tokens or candidates.

    Raises:
        InvalidArgumentError: If the environment cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import ActionMask
        >>> env = ActionMask(gym.make("ABC-RLHF-v0"))
        >>> observation, info = env.reset(seed=0)
        >>> eos = env.unwrapped.tokenizer.eos_token_id
        >>> int(info["action_mask"].sum()), int(info["action_mask"][eos])
        (4095, 0)
        >>> action = env.action_space.sample(info["action_mask"])
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        self._text_env = find_text_env(env, TextGenerationEnv)
        self._masks_tokens = masks_tokens(
            env, env.action_space, self._text_env.action_space, TopKActions
        )
        super().__init__(env)

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, shape (num_actions,), bool."""
        if self._masks_tokens:
            return legal_tokens(self._text_env)[0]
        return np.ones(self.action_space.n, dtype=np.bool_)  # type: ignore[attr-defined]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        info["action_mask"] = self.action_masks().astype(np.int8)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; the mask is that of the new state."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["action_mask"] = self.action_masks().astype(np.int8)
        return observation, reward, terminated, truncated, info


class VectorActionMask(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.ActionMask`.

    ``infos["action_mask"]`` is int8 of shape (num_envs, num_actions) and describes the new states.
    A reset gives it for the rows that were reset. A step gives it for all rows, except those that
    wait to be reset (``AutoresetMode.DISABLED``).

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
            env, env.single_action_space, self._text_env.single_action_space, VectorTopKActions
        )

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, shape (num_envs, num_actions), bool."""
        if self._masks_tokens:
            return legal_tokens(self._text_env)
        num_actions = self.single_action_space.n  # type: ignore[attr-defined]
        return np.ones((self.num_envs, num_actions), dtype=np.bool_)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        rows = self._rows_to_reset(options)
        observations, infos = self.env.reset(seed=seed, options=options)
        self._put(infos, rows)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step; the masks are those of the new states."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        acted = self._text_env.last_step.tokens >= 0
        self._put(infos, acted | ~self._text_env.ended)
        return observations, rewards, terminated, truncated, infos

    def _put(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        put(infos, "action_mask", self.action_masks()[rows].astype(np.int8), rows)
