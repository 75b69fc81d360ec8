"""Changing the rewards of a finished rollout, and its advantages and returns with them.

Stable-Baselines3 calls ``on_rollout_end`` of a callback after ``compute_returns_and_advantage`` and
right before ``train``. To compute advantages from scratch there, the buffer would need the values
after its last step. PPO and A2C show them to a callback, but MaskablePPO does not. Computing only
the change needs no values. And since changes add up, several callbacks can each make their own, in
any order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer

from textgym.errors import InvalidArgumentError

__all__ = [
    "add_to_rewards",
    "change_of_advantages",
    "check_has_rollouts",
    "check_rewards_as_paid",
]


def check_has_rollouts(algorithm: BaseAlgorithm, remedy: str) -> None:
    """Make sure that an algorithm learns from rollouts, as PPO and A2C do.

    Args:
        algorithm: The algorithm that a callback is used with.
        remedy: What to use with one that does not.

    Raises:
        InvalidArgumentError: If it has no rollout buffer.
    """
    if not isinstance(getattr(algorithm, "rollout_buffer", None), RolloutBuffer):
        raise InvalidArgumentError(
            "callback",
            type(algorithm).__name__,
            f"this algorithm has no rollout buffer; {remedy}",
        )


def check_rewards_as_paid(algorithm: BaseAlgorithm, reason: str) -> None:
    """Make sure that the rewards in the buffer are those that the environment paid.

    Args:
        algorithm: The algorithm that a callback is used with.
        reason: Why they must be.

    Raises:
        InvalidArgumentError: If the environment normalises rewards.
    """
    normalizer = algorithm.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_reward:
        raise InvalidArgumentError(
            "env", normalizer, f"{reason}: use VecNormalize(..., norm_reward=False)"
        )


def add_to_rewards(buffer: RolloutBuffer, change: NDArray[np.float32]) -> None:
    """Add to the rewards, in place, and to advantages and returns what follows from it.

    Args:
        buffer: A full buffer whose advantages have been computed.
        change: What to add to each reward, shape (num_steps, num_envs).
    """
    advantages = change_of_advantages(
        change, buffer.episode_starts, buffer.gamma * buffer.gae_lambda
    )
    buffer.rewards += change
    buffer.advantages += advantages
    buffer.returns += advantages


def change_of_advantages(
    change: NDArray[np.float32], episode_starts: NDArray[np.float32], decay: float
) -> NDArray[np.float32]:
    """How the advantages of a rollout change with its rewards.

    Generalised advantage estimation (arXiv 1506.02438, equation 16) is linear in the rewards, so no
    values are needed: ΔA_t = Δr_t + γλ ΔA_{t+1} within an episode.

    Args:
        change: New rewards minus old ones, shape (num_steps, num_envs).
        episode_starts: 1 at the first step of an episode, shape (num_steps, num_envs).
        decay: γλ.

    Returns:
        Shape (num_steps, num_envs). Returns change by the same amount, since they are advantages
        plus values.
    """
    result = change.copy()
    for step in reversed(range(len(change) - 1)):
        result[step] += decay * (1 - episode_starts[step + 1]) * result[step + 1]
    return result
