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

    With SB3's own ``DummyVecEnv`` every environment calls the reward model for itself. Here one
    call scores all episodes that end in a step. Otherwise the two are the same: with equal seeds
    and actions they return the same observations, rewards and infos. In particular,
    ``info["credit"]`` has one number per step of the episode.

    The autoreset mode must be ``DISABLED``. SB3 expects a row that is done to be reset within the
    step, with its last observation in ``info["terminal_observation"]``. The adapter resets such
    rows itself, so the infos of a step belong to the step, and those of a reset (``reset_infos``)
    to the reset. A vector environment in mode ``SAME_STEP`` would mix the two, and in mode
    ``NEXT_STEP`` it would spend a step on the reset.

    All rows are one environment. So :meth:`get_attr` gives the same value for every row,
    :meth:`set_attr` sets it for all rows, and :meth:`env_method` makes one call. If the answer has
    an entry per row (a list, tuple or array of length num_envs, such as action masks), each row
    gets its entry; otherwise each row gets the whole answer. That is how
    ``sb3_contrib.MaskablePPO`` finds a wrapper's ``action_masks``.

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
                "pass a gymnasium.vector.VectorEnv, which gym.make_vec returns; SB3 takes single "
                "environments directly",
            )
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise InvalidArgumentError(
                "env",
                mode,
                "finished rows must wait to be reset: make the environment with "
                "gym.make_vec(..., autoreset_mode=AutoresetMode.DISABLED)",
            )
        self.env = env
        self._actions: NDArray[Any] = np.zeros(0)
        self._num_steps = np.zeros(env.num_envs, dtype=np.int64)  # of the current episodes
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start new episodes in all rows, with the seeds and options set before."""
        self._num_steps[:] = 0
        observations, infos = self.env.reset(seed=self._seeds, options=self._options[0])  # type: ignore[arg-type]
        self.reset_infos = _infos_of_rows(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions, shape (num_envs, ...), for :meth:`step_wait`."""
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
        self._num_steps += 1
        if dones.any():
            done_rows = np.flatnonzero(dones).tolist()
            for row in done_rows:
                info = row_infos[row]
                info["terminal_observation"] = _observation_of_row(observations, row)
                if "credit" in info:  # without the zeros after the last step
                    info["credit"] = info["credit"][: self._num_steps[row]]
            self._num_steps[dones] = 0
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
                "options", options, "all rows are reset together: pass one dict for all of them"
            )
        super().set_options(options)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The value of an attribute of the environment, once for each requested row.

        Raises:
            AttributeError: If neither the environment nor a wrapper has it.
        """
        value = getattr(self._layer_with(attr_name), attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute on the layer that has it, or on the outermost one if it is new.

        Raises:
            InvalidArgumentError: If not all rows are requested.
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
        """Call a method once, for all rows, and return its answer for each requested row.

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
        """Whether the environment has a wrapper of this class, which is a vector wrapper."""
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


def _infos_of_rows(
    infos: dict[str, Any], num_envs: int, outer_mask: NDArray[np.bool_] | None = None
) -> list[dict[str, Any]]:
    """Each row's own infos: those whose mask (``_key``) names the row.

    Infos without a mask, in a dict that has one, belong to the rows of the dict: Gymnasium's
    RecordEpisodeStatistics writes its statistics like that.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        mask = infos.get(f"_{key}", outer_mask)
        if mask is None or (key.startswith("_") and key[1:] in infos):
            continue
        if isinstance(values, dict):
            values = _infos_of_rows(values, num_envs, mask)
        for row in np.flatnonzero(mask).tolist():
            value = values[row]
            rows[row][key] = value.item() if isinstance(value, np.generic) else value
    return rows
