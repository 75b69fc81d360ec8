"""Environments with wrappers applied, for scripts that take nothing but an id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel

from textgym.envs import TextGenerationEnv, TextGenerationVectorEnv
from textgym.wrappers import vector
from textgym.wrappers.language_model_features import LanguageModelFeatures
from textgym.wrappers.top_k_actions import TopKActions

__all__ = ["make_features_env", "make_features_vector_env"]


def make_features_env(
    model: str | Path | PreTrainedModel = "embedded",
    *,
    k: int = 16,
    top_k: int | None = None,
    max_new_tokens: int = 16,
    min_new_tokens: int | None = None,
    **arguments: Any,
) -> gym.Env:
    """Make ``ABC-RLHF-Features-v0``: a vector to look at, a few likely tokens to choose from.

    It is :class:`textgym.envs.TextGenerationEnv` in
    :class:`textgym.wrappers.LanguageModelFeatures` (with ``progress=True``) in
    :class:`textgym.wrappers.TopKActions`. With the embedded model the spaces are
    ``Box(-inf, inf, (257,), float32)`` and ``Discrete(16)``, which agents for small control
    problems take.

    By default every completion has the same number of tokens. The budget is a hidden part of the
    state where it differs between episodes; with one budget for all, the last feature tells how
    many tokens are left. EOS is never legal then, and is no candidate.

    Args:
        model: The language model of both wrappers.
        k: See :class:`textgym.wrappers.TopKActions`.
        top_k: See :class:`textgym.wrappers.LanguageModelFeatures`.
        max_new_tokens: See :class:`textgym.envs.TextGenerationEnv`.
        min_new_tokens: As there; None for ``max_new_tokens``.
        **arguments: Further arguments of :class:`textgym.envs.TextGenerationEnv`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("textgym:ABC-RLHF-Features-v0", max_new_tokens=12)
        >>> env.observation_space.shape, env.action_space
        ((257,), Discrete(16))
    """
    min_new_tokens = max_new_tokens if min_new_tokens is None else min_new_tokens
    env: gym.Env = TextGenerationEnv(
        min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, **arguments
    )
    return TopKActions(LanguageModelFeatures(env, model, top_k=top_k, progress=True), k, model)


def make_features_vector_env(
    num_envs: int = 1,
    model: str | Path | PreTrainedModel = "embedded",
    *,
    k: int = 16,
    top_k: int | None = None,
    max_new_tokens: int = 16,
    min_new_tokens: int | None = None,
    **arguments: Any,
) -> VectorEnv:
    """Make the batched ``ABC-RLHF-Features-v0``; see :func:`make_features_env`.

    Args:
        num_envs: Number of rows.
        model: See :func:`make_features_env`, as for all but the last.
        k: As there.
        top_k: As there.
        max_new_tokens: As there.
        min_new_tokens: As there.
        **arguments: Further arguments of :class:`textgym.envs.TextGenerationVectorEnv`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """
    min_new_tokens = max_new_tokens if min_new_tokens is None else min_new_tokens
    envs: VectorEnv = TextGenerationVectorEnv(
        num_envs, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens, **arguments
    )
    features = vector.LanguageModelFeatures(envs, model, top_k=top_k, progress=True)
    return vector.TopKActions(features, k, model)
