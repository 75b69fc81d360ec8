"""Hindsight credit in the buffers of Stable-Baselines3, as pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.errors import InvalidArgumentError

__all__ = ["credit_of", "rewards_of_the_rest"]


def credit_of(info: dict[str, Any]) -> NDArray[np.float32] | None:
    """The credit in the info of an episode's last step.

    Args:
        info: The info of an environment that is done.

    Returns:
        float32, shape (num_steps,), one number per step of the episode. None if the episode was
        cut short from outside and has no credit, since there is no score to share out.

    Raises:
        InvalidArgumentError: If a terminated episode has no credit, or the credit is not a list of
            numbers.
    """
    if "credit" not in info:
        if info.get("TimeLimit.truncated", False):
            return None
        raise InvalidArgumentError(
            "env",
            sorted(info),
            'an episode ended without info["credit"]: put textgym.wrappers.CreditAssignment (or '
            "its vector form) around the environment",
        )
    credit = np.asarray(info["credit"], dtype=np.float32)
    if credit.ndim != 1 or not len(credit):
        raise InvalidArgumentError('info["credit"]', credit, "provide one number per step")
    return credit


def rewards_of_the_rest(
    paid: NDArray[np.float32], credit: NDArray[np.float32], gamma: float
) -> NDArray[np.float32]:
    """The rewards to learn from, for the steps of an episode that are in this rollout.

    An episode that lies within one rollout is paid its credit, step by step. If it began in an
    earlier rollout, its first steps are gone: the agent has already learned from what they were
    paid at the time. Dropping their credit would change the return. So the first step in this
    rollout gets whatever is missing, such that the discounted return from that step on is the one
    that the environment paid. Later steps get their own credit, as in an episode that was not
    split::

        step                0    1  |  2    3    4         gamma = 1
        paid                0    0  |  0    0    R
        credit             .1R  .2R | .3R  .2R  .2R
        learned from        0    0  | .6R  .2R  .2R        .6 = .3 + (.1 + .2)

    Without a discount, or if the credit has the same discounted sum as the rewards, the missing
    amount is the credit of the earlier steps minus what they were paid. Credit that is measured
    from the prompt sums to less than the rewards, by the prompt's score: it is missing, too.

    Args:
        paid: Rewards of the steps in this rollout, the last ones of the episode, shape (num_left,).
        credit: Credit of the whole episode, shape (num_steps,), ``num_left <= num_steps``.
        gamma: Discount factor of the algorithm.

    Returns:
        float32, shape (num_left,).
    """
    num_left = len(paid)
    rewards = credit[-num_left:].copy()
    if len(credit) > num_left:
        discounts = gamma ** np.arange(num_left)
        rewards[0] += (discounts * (paid - rewards)).sum()
    return rewards
