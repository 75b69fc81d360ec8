"""An alarm for runs that have left the region where their score means something."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

__all__ = ["find_runaway", "sound_alarm"]

_WINDOW = 3
"""Iterations to average over: one may be an accident."""


def sound_alarm(
    history: Sequence[Mapping[str, float]], num_actions: int, warn: bool = True
) -> bool:
    """Whether something runs away, with a warning if it is the first time in this run.

    Args:
        history: Rows of scalars, one per iteration; at least one. ``train/alarm`` in a row says
            that there was an alarm.
        num_actions: Size of the action space.
        warn: False only tells.
    """
    runaway = find_runaway(history, num_actions)
    if warn and runaway is not None and not any(row.get("train/alarm") for row in history):
        warnings.warn(f"iteration {len(history)}: {runaway}.", RuntimeWarning, stacklevel=4)
    return runaway is not None


def find_runaway(history: Sequence[Mapping[str, float]], num_actions: int) -> str | None:
    """Say what runs away, or None.

    The entropy of the first iteration is that of the reference policy, in nats per token. Averaged
    over the last three iterations,

    - the KL runs away if it is more than that per token: the policy writes what the reference
      policy finds less likely than its own texts, however certain the policy is. For
      KL(π‖π_ref) + entropy of π is the surprise of the reference policy at a token of π.
    - the entropy collapses if it is less than a tenth of that: nearly every token is certain, and
      the policy has nothing left to compare.
    - the entropy explodes if it is past the middle between that and log(num_actions), the entropy
      of choosing by lot.

    Args:
        history: Rows of scalars, one per iteration; at least one.
        num_actions: Size of the action space.
    """
    rows = history[-_WINDOW:]
    first, at_most = history[0]["train/entropy"], math.log(num_actions)
    entropy = sum(row["train/entropy"] for row in rows) / len(rows)
    kl = sum(row["rollout/kl_exact"] / row["rollout/episode_length"] for row in rows) / len(rows)
    if kl > first:
        return (
            f"the KL to the reference policy is {kl:.2f} nats per token, more than the reference "
            f"policy's entropy, {first:.2f}: the texts are unlike any that it would write. If this "
            "is not what the score asks for, raise kl_coef or lower the learning rate"
        )
    if entropy < 0.1 * first:
        return (
            f"the policy's entropy has fallen from {first:.2f} to {entropy:.2f} nats per token: "
            "raise kl_coef or ent_coef, or lower the learning rate"
        )
    if entropy > 0.5 * (first + at_most):
        return (
            f"the policy's entropy has risen from {first:.2f} to {entropy:.2f} nats per token, "
            f"and choosing by lot has {at_most:.2f}: lower ent_coef or the learning rate"
        )
    return None
