"""A Gymnasium vector environment in the form that Stable-Baselines3 expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnv,
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)

from textgym.errors import InvalidArgumentError

__all__ = ["TextVecEnv"]


class TextVecEnv(VecEnv):
    """Lets Stable-Baselines3 train on what ``gym.make_vec`` returns, vector wrappers included.

    With SB3's own ``DummyVecEnv`` every environment calls the reward model for itself; here one
    call scores all episodes that end in a step. Apart from that the two are the same: under equal
    seeds and actions they return the same observations, rewards and infos.

    The autoreset mode must be ``DISABLED``. SB3 wants a row that is done to be reset within the
    step, with its last observation in ``info["terminal_observation"]``. The adapter does just
    that, by a reset of the rows that are done, so the infos of a step belong to the step and those
    of a reset (``reset_infos``) to the reset. In mode ``SAME_STEP`` a vector environment would
    mix the two, and in mode ``NEXT_STEP`` it would spend a step on the reset.

    All rows are one environment. :meth:`get_attr` therefore gives the same value for all of them,
    :meth:`set_attr` sets it for all, and :meth:`env_method` makes one call: an answer with an
    entry per row (a list, tuple or array of length num_envs, as the action masks are) is dealt
    out, any other answer goes to every row. ``sb3_contrib.MaskablePPO`` finds ``action_masks`` of
    a wrapper in that way.

    Args:
        env: A vector environment in autoreset mode ``DISABLED``, with any vector wrappers.

    Raises:
        InvalidArgumentError: If it is another environment, or in another mode.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from gymnasium.vector import AutoresetMode
        >>> envs = gym.make_vec("ABC-RLHF-v0", 4, autoreset_mode=AutoresetMode.DISABLED)
        >>> vec_env = TextVecEnv(envs)
        >>> vec_env.reset()["input_ids"].shape == (4, envs.unwrapped.max_length)
        True
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise InvalidArgumentError(
                "env",
                env,
                "pass a gymnasium.vector.VectorEnv such as gym.make_vec returns; SB3 takes single "
                "environments as they are",
            )
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise InvalidArgumentError(
                "env",
                mode,
                "the rows must wait for their reset: make the environment with "
                "gym.make_vec(..., autoreset_mode=AutoresetMode.DISABLED)",
            )
        self.env = env
        self._actions: NDArray[Any] = np.zeros(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start new episodes in all rows, with the seeds and options that were set before."""
        observations, infos = self.env.reset(seed=self._seeds, options=self._options[0])  # type: ignore[arg-type]
        self.reset_infos = _infos_of_rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take note of the actions, (num_envs, ...)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows, then reset those that are done.

        Returns:
            Observations, rewards (float32) and dones, each with a leading axis of num_envs, and
            one info per row.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        row_infos = _infos_of_rows(infos, self.num_envs)
        for info, is_cut_off in zip(row_infos, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = is_cut_off
        if dones.any():
            done_rows = np.flatnonzero(dones).tolist()
            for row in done_rows:
                row_infos[row]["terminal_observation"] = _observation_of_row(observations, row)
            observations, infos = self.env.reset(options={"reset_mask": dones})
            reset_infos = _infos_of_rows(infos, self.num_envs)
            for row in done_rows:
                self.reset_infos[row] = reset_infos[row]
        return observations, rewards.astype(np.float32), dones, row_infos

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Set the options of the next reset.

        Raises:
            InvalidArgumentError: If they differ from row to row.
        """
        if isinstance(options, list) and any(one != options[0] for one in options):
            raise InvalidArgumentError(
                "options", options, "all rows are reset together: pass one dict for all"
            )
        super().set_options(options)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The value of an attribute of the environment, once for each row asked for.

        Raises:
            AttributeError: If neither the environment nor a wrapper has it.
        """
        value = getattr(self._layer_with(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute where it is, or on the outermost wrapper if it is new.

        Raises:
            InvalidArgumentError: If it is asked for some rows only.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise InvalidArgumentError(
                "indices", indices, "all rows share their attributes: pass None"
            )
        try:
            layer = self._layer_with(attr_name)
        except AttributeError:
            layer = self.env
        setattr(layer, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method once, for all rows, and return its answer for each row asked for.

        Raises:
            AttributeError: If neither the environment nor a wrapper has it.
        """
        method = getattr(self._layer_with(method_name), method_name)
        answer = method(*method_args, **method_kwargs)
        is_per_row = isinstance(answer, (list, tuple, np.ndarray)) and len(answer) == self.num_envs
        return [answer[row] if is_per_row else answer for row in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether a wrapper of this class, a vector wrapper, is around the environment."""
        is_wrapped = any(isinstance(layer, wrapper_class) for layer in self._layers())
        return [is_wrapped for _ in self._get_indices(indices)]

    def _layers(self) -> Iterator[VectorEnv]:
        """The wrappers from the outside in, then the environment itself."""
        layer: Any = self.env
        while layer is not layer.unwrapped:
            yield layer
            layer = layer.env
        yield layer

    def _layer_with(self, name: str) -> VectorEnv:
        for layer in self._layers():
            if hasattr(layer, name):
                return layer
        raise AttributeError(f"{self.env} has no attribute {name!r}")


def _observation_of_row(observations: Any, row: int) -> Any:
    if isinstance(observations, dict):
        return {name: values[row].copy() for name, values in observations.items()}
    return observations[row].copy()


def _infos_of_rows(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """The entries of a vector environment's infos that its masks (``_key``) give to each row."""
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if f"_{key}" not in infos:
            continue
        if isinstance(values, dict):
            values = _infos_of_rows(values, num_envs)
        for row in np.flatnonzero(infos[f"_{key}"]).tolist():
            value = values[row]
            rows[row][key] = value.item() if isinstance(value, np.generic) else value
    return rows
