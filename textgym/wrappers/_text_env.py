"""Finding the text environment under a stack of wrappers, and checking the stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import VectorEnv, VectorWrapper

from textgym.envs import TextEnvironment
from textgym.errors import InvalidArgumentError

__all__ = ["find_text_env", "refuse_inside", "row_spaces", "wrappers_of"]

Env = TypeVar("Env", bound=TextEnvironment)


def find_text_env(env: Any, env_type: type[Env], needs_causal_reward_model: bool = False) -> Env:
    """The text environment that a wrapper reads from.

    Args:
        env: The environment to wrap.
        env_type: The class that its base must have, single or batched.
        needs_causal_reward_model: Whether the reward model must not look ahead of a token.

    Raises:
        InvalidArgumentError: If the base environment or its reward model cannot be used.
    """
    if not isinstance(env, gym.Env | VectorEnv):
        raise InvalidArgumentError(
            "env", env, f"must be an environment: a {env_type.__name__}, with any wrappers"
        )
    base = env.unwrapped
    if not isinstance(base, env_type):
        raise InvalidArgumentError(
            "env",
            env,
            f"this wrapper needs a {env_type.__name__}, and the base environment is a "
            f"{type(base).__name__}; use textgym.wrappers for single environments and "
            "textgym.wrappers.vector for batched ones (gym.make_vec without vectorization_mode)",
        )
    if needs_causal_reward_model and not getattr(base.reward_model, "is_causal", True):
        raise InvalidArgumentError(
            "env",
            env,
            "its reward model looks ahead of a token (it is an encoder, or has another tokenizer "
            "than the policy), so attention-weighted prefix scores would depend on tokens still to "
            "come; use a decoder with the policy's tokenizer, or PrefixScore() as the potential",
        )
    return base


def wrappers_of(env: Any) -> Iterator[Any]:
    """The wrappers around an environment, outermost first."""
    while isinstance(env, gym.Wrapper | VectorWrapper):
        yield env
        env = env.env


def row_spaces(env: Any) -> tuple[gym.Space, gym.Space]:
    """Observation space and action space of one row of an environment, single or batched."""
    if isinstance(env, VectorEnv):
        return env.single_observation_space, env.single_action_space
    return env.observation_space, env.action_space


def refuse_inside(env: Any, forms: tuple[type[Any], type[Any]], remedy: str) -> None:
    """Refuse an environment that already has a certain wrapper.

    Args:
        env: The environment to wrap.
        forms: The wrapper's two forms, single and vector.
        remedy: What the error says after naming the wrapper.

    Raises:
        InvalidArgumentError: If it has one.
    """
    for one in wrappers_of(env):
        if isinstance(one, forms):
            raise InvalidArgumentError("env", env, f"it has {type(one).__name__} already; {remedy}")
