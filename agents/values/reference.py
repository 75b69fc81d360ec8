"""Fits the value of the reference policy to its own completions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from textgym.agents.environment import (
    action_rules,
    as_vector_env,
    check_context,
    check_vocabulary,
    name_of_policy,
)
from textgym.agents.policy import LanguageModelPolicy
from textgym.agents.rollout import collect_episodes
from textgym.agents.values.potential import read_rollout
from textgym.checks import check_number, check_whole_number
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv
    from transformers import PreTrainedModel

    from textgym.credit import ReferenceValue

__all__ = ["ReferenceFit", "fit_reference_value"]


class ReferenceFit(NamedTuple):
    """What :func:`fit_reference_value` returns."""

    potential: ReferenceValue
    """The fitted value, a potential."""
    explained_variance: Tensor
    """Share of the score's variance that is known after 0, 1, … tokens, on completions that the fit
    has not seen; float32 (num_positions,)."""
    num_tokens: int
    """Number of tokens generated for it."""


def fit_reference_value(
    policy: LanguageModelPolicy | str | Path | PreTrainedModel,
    env: gym.Env | VectorEnv,
    num_episodes: int,
    ridge: float = 1.0,
    seed: int = 0,
) -> ReferenceFit:
    """Let the reference policy complete prompts, and fit the score to expect from each state.

    Args:
        policy: The reference policy: an agent's ``ref_policy``, or a language model as agents take
            it, sampled at temperature 1.
        env: A text environment, single or in autoreset mode ``DISABLED``; what is learned is its
            unshaped score, whatever wrappers pay.
        num_episodes: Number of completions, a multiple of the environment's rows.
        ridge: See :meth:`textgym.credit.ReferenceValue.fit`.
        seed: Seeds prompts and tokens.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or an episode is truncated.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.agents.values import fit_reference_value
        >>> from textgym.wrappers.vector import PotentialShaping
        >>> envs = gym.make_vec("ABC-RLHF-v0", num_envs=16, autoreset_mode="Disabled")
        >>> fit = fit_reference_value("embedded", envs, num_episodes=64)
        >>> envs = PotentialShaping(envs, fit.potential)
    """
    from textgym.credit.reference_value import ReferenceValue, leave_one_out_explained_variance

    check_whole_number("num_episodes", num_episodes, 1)
    check_number("ridge", ridge, above=0.0, remedy="must be a finite number above 0")
    check_whole_number("seed", seed, 0, 2**63 - 1)
    vector_env = as_vector_env(env)
    if not isinstance(policy, LanguageModelPolicy):
        from textgym.models.loading import load_language_model  # Imported here: slow.

        model = load_language_model(policy)
        check_vocabulary(policy, model, vector_env)
        check_context("policy", name_of_policy(policy), model, vector_env)
        policy = LanguageModelPolicy(copy.deepcopy(model), action_rules(vector_env))
    generator = torch.Generator().manual_seed(seed)
    rollout = collect_episodes(policy, vector_env, num_episodes, generator)
    if rollout.truncated.any():
        raise InvalidArgumentError(
            "env",
            env,
            "an episode was truncated, so its score is not known: let the environment end it "
            "(max_new_tokens), without TimeLimit.",
        )
    scored = read_rollout(env, rollout, ReferenceValue.readouts)
    return ReferenceFit(
        ReferenceValue.fit(scored, ridge),
        leave_one_out_explained_variance(scored, ridge),
        int(rollout.episode_lengths.sum()),
    )
