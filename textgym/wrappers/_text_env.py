"""Finding the text environment below a stack of wrappers."""

from __future__ import annotations

from typing import Any

from textgym.errors import InvalidArgumentError

__all__ = ["find_text_env"]


def find_text_env(env: Any, env_type: type[Any], needs_causal_reward_model: bool) -> Any:
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
