"""Finding the text environment below a stack of wrappers, and what is in the stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorWrapper

from textgym.errors import InvalidArgumentError

__all__ = ["find_text_env", "refuse_inside", "wrappers_of"]


def find_text_env(env: Any, env_type: type[Any], needs_causal_reward_model: bool = False) -> Any:
    """The text environment that a wrapper reads from.

    Args:
        env: The environment to wrap.
        env_type: The class that its base must have.
        needs_causal_reward_model: Whether the reward model must not look ahead.

    Raises:
        InvalidArgumentError: If the base environment or its reward model cannot serve.
    """
    base: Any = env.unwrapped
    if not isinstance(base, env_type):
        raise InvalidArgumentError(
            "env",
            env,
            f"this wrapper reads from a {env_type.__name__}, and the base environment is a "
            f"{type(base).__name__}; single environments take textgym.wrappers, batched ones "
            "(gym.make_vec) textgym.wrappers.vector",
        )
    if needs_causal_reward_model and not getattr(base.reward_model, "is_causal", True):
        raise InvalidArgumentError(
            "env",
            env,
            "its reward model looks ahead (an encoder), so attention-weighted prefix scores are "
            "no function of the text so far; use a decoder as the reward model or "
            "PrefixScore() as the potential",
        )
    return base


def wrappers_of(env: Any) -> Iterator[Any]:
    """The wrappers around an environment, outermost first."""
    while isinstance(env, gym.Wrapper | VectorWrapper):
        yield env
        env = env.env


def refuse_inside(env: Any, wrapper: type[Any], remedy: str) -> None:
    """Refuse to wrap an environment that has a certain wrapper already.

    Raises:
        InvalidArgumentError: If it has.
    """
    if any(isinstance(one, wrapper) for one in wrappers_of(env)):
        raise InvalidArgumentError("env", env, f"it has a {wrapper.__name__} already; {remedy}")
