"""Shows agents which token is illegal now."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from textgym.envs import TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.models import Completions
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper
from textgym.wrappers._text_env import refuse_inside, row_spaces

__all__ = ["IllegalToken", "VectorIllegalToken"]


def _illegal_tokens(env: TextEnvironment, completions: Completions) -> np.ndarray:
    """The illegal token in some states: EOS or, where all tokens are legal, -1.

    Args:
        env: The text environment, for its rules.
        completions: The texts of the states.

    Returns:
        int64, shape (batch, 1).
    """
    num_new_tokens = completions.completion_mask.sum(1).cpu().numpy()
    eos = env.task.eos_token_id
    may_end = env.task.action_masks(num_new_tokens)[:, eos]
    return np.where(may_end, -1, eos)[:, None]


def _with_illegal_token(env: Any) -> spaces.Dict:
    """The observation space of one row, with the key added.

    Raises:
        InvalidArgumentError: If the observations have the key already, or are not a Dict.
    """
    refuse_inside(env, (IllegalToken, VectorIllegalToken), "one wrapper of this class is enough")
    space, _ = row_spaces(env)
    if not isinstance(space, spaces.Dict):
        raise InvalidArgumentError(
            "env",
            env,
            f"its observations ({space}) are not a Dict, to which a key can be added; put "
            "IllegalToken below the wrapper that changes observations",
        )
    token = spaces.Box(-1, env.unwrapped.task.vocab_size - 1, (1,), np.int64)
    return spaces.Dict({**space.spaces, "illegal_token": token})


class IllegalToken(TextWrapper, gym.ObservationWrapper[Any, Any, Any]):
    """Adds the token that is illegal now to every observation.

    EOS is illegal while fewer than ``min_new_tokens`` tokens have been generated. The tokens alone
    do not tell, since they do not say where the prompt ends. An agent that sees this key can sample
    from the legal tokens, and later evaluate the same distribution from a stored observation alone.
    A mask over the vocabulary, as :class:`textgym.wrappers.ActionMask` gives it, would tell the
    same with as many numbers as there are tokens.

    Actions, rewards and ``info`` are those of the wrapped environment.

    | key in the observation | type       | meaning                                         |
    |------------------------|------------|-------------------------------------------------|
    | `illegal_token`        | int64 (1,) | EOS while it is illegal, -1 once all are legal  |

    Args:
        env: A text environment, with any wrappers that leave its observations a Dict.

    Raises:
        InvalidArgumentError: If the environment cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import IllegalToken
        >>> env = IllegalToken(gym.make("ABC-RLHF-v0", min_new_tokens=1))
        >>> observation, info = env.reset(seed=0)
        >>> int(observation["illegal_token"][0]) == env.unwrapped.tokenizer.eos_token_id
        True
        >>> observation, *_ = env.step(300)
        >>> observation["illegal_token"]
        array([-1])
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = _with_illegal_token(env)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with the key, which speaks about the state now."""
        token = _illegal_tokens(self._text_env, self._text_env.completions)[0]
        return {**observation, "illegal_token": token}


class VectorIllegalToken(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.IllegalToken`.

    ``observations["illegal_token"]`` is int64 of shape (num_envs, 1). Under
    ``AutoresetMode.SAME_STEP`` the entries of ``infos["final_obs"]`` have the key too.

    Args:
        env: A batched text environment, with any wrappers that leave its observations a Dict.

    Raises:
        InvalidArgumentError: If the environment cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import IllegalToken
        >>> envs = IllegalToken(gym.make_vec("ABC-RLHF-v0", num_envs=4))
        >>> observations, infos = envs.reset(seed=0)
        >>> observations["illegal_token"].shape
        (4, 1)
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.single_observation_space = _with_illegal_token(env)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._with_key(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step; the key speaks about the new states."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            last = self._text_env.last_step
            assert last.scored is not None
            rows = np.flatnonzero(last.finished)
            for row, token in zip(rows, _illegal_tokens(self._text_env, last.scored), strict=True):
                infos["final_obs"][row]["illegal_token"] = token
        return self._with_key(observations), rewards, terminated, truncated, infos

    def _with_key(self, observations: dict[str, Any]) -> dict[str, Any]:
        tokens = _illegal_tokens(self._text_env, self._text_env.completions)
        return {**observations, "illegal_token": tokens}
