"""Tells agents which actions are legal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.envs import TextEnvironment
from textgym.envs.infos import put
from textgym.errors import InvalidArgumentError
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper
from textgym.wrappers._text_env import row_spaces, wrappers_of
from textgym.wrappers.top_k_actions import TopKActions, VectorTopKActions

__all__ = ["ActionMask", "MaskReader", "VectorActionMask"]


class MaskReader:
    """Tells which actions of an environment are legal, for both forms of the wrapper.

    Args:
        env: The environment to wrap, single or batched.

    Raises:
        InvalidArgumentError: If its actions are neither tokens nor candidates.
    """

    def __init__(self, env: Any) -> None:
        self._base: TextEnvironment = env.unwrapped
        (_, actions), (_, tokens) = row_spaces(env), row_spaces(env.unwrapped)
        ks = [one.k for one in wrappers_of(env) if isinstance(one, TopKActions | VectorTopKActions)]
        if actions not in (tokens, *map(spaces.Discrete, ks)):
            raise InvalidArgumentError(
                "env",
                env,
                f"its actions ({actions}) are neither tokens nor candidates of TopKActions; put "
                "ActionMask below the wrapper that changes actions",
            )
        self._num_candidates = None if actions == tokens else ks[0]

    def __call__(self) -> np.ndarray:
        """Which actions are legal now, bool, shape (num_envs, num_actions)."""
        if self._num_candidates is not None:
            return np.ones((len(self._base.ended), self._num_candidates), dtype=np.bool_)
        num_new_tokens = self._base.completions.completion_mask.sum(1).numpy()
        return self._base.task.action_masks(num_new_tokens)


class ActionMask(TextWrapper):
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
        super().__init__(env)
        self._masks = MaskReader(env)

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, shape (num_actions,), bool."""
        return self._masks()[0]

    def _begin(self, info: dict[str, Any]) -> None:
        info["action_mask"] = self.action_masks().astype(np.int8)

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
        self._masks = MaskReader(env)

    def action_masks(self) -> np.ndarray:
        """Which actions are legal now, shape (num_envs, num_actions), bool."""
        return self._masks()

    def _begin(self, rows: np.ndarray, infos: dict[str, Any]) -> None:
        self._put(infos, rows)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step; the masks are those of the new states."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        acted = self._text_env.last_step.tokens >= 0
        self._put(infos, acted | ~self._text_env.ended)
        return observations, rewards, terminated, truncated, infos

    def _put(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        put(infos, "action_mask", self.action_masks()[rows].astype(np.int8), rows)
