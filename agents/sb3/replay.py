"""Hindsight credit for the off-policy algorithms of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from textgym.errors import InvalidArgumentError

from .credit import credit_of

__all__ = ["HindsightDictReplayBuffer", "HindsightReplayBuffer"]


class _CreditedTransitions:
    """Rewrites the rewards of an episode once its last transition is stored.

    All environments write into the same slot of the ring, so the transitions of an episode lie in
    as many consecutive slots as it had steps, the last of them just written. A ring of five slots
    and an episode of four steps that began in slot 3; the next transition will go to ``pos``::

        slot        0    1    2    3    4
        holds       e3   e4   .    e1   e2      pos = 2, credit (c1, c2, c3, c4)
        rewards     c3   c4   .    c1   c2
    """

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a transition of each environment, and the credit of the episodes that it ends."""
        super().add(obs, next_obs, action, reward, done, infos)  # type: ignore[misc]
        buffer: Any = self
        for row in np.flatnonzero(done).tolist():
            credit = credit_of(infos[row])
            if credit is None:
                continue
            num_left = min(len(credit), buffer.size())
            slots = (buffer.pos - 1 - np.arange(num_left)) % buffer.buffer_size  # latest first
            earlier_end = buffer.dones[slots[1:], row].any()
            if earlier_end:
                raise InvalidArgumentError(
                    'info["credit"]',
                    credit,
                    "it reaches back into the episode before: hand over one number per step",
                )
            buffer.rewards[slots, row] = credit[::-1][:num_left]


class HindsightReplayBuffer(_CreditedTransitions, ReplayBuffer):
    """A replay buffer whose rewards become the credit of their episode as soon as it has ended.

    For algorithms such as DQN: ``DQN(..., replay_buffer_class=HindsightReplayBuffer)``, on an
    environment whose infos hold ``"credit"`` at the end of an episode, one number per step. (It
    relabels rewards, and has nothing to do with goals, unlike SB3's ``HerReplayBuffer``.)

    Until its episode has ended, a transition can be sampled with what its step paid. The credit of
    transitions that the ring has overwritten goes with them: one-step targets ask of a transition
    for its own reward alone. ``optimize_memory_usage`` works, as it shares out observations only.
    Rewards are stored before ``VecNormalize`` scales them, and so is credit. The form for Dict
    observations is :class:`HindsightDictReplayBuffer`.

    Args:
        *arguments: Those of ``stable_baselines3.common.buffers.ReplayBuffer``.
        **keywords: Likewise.

    Raises:
        InvalidArgumentError: In ``add``, if an episode ends without usable credit.
    """


class HindsightDictReplayBuffer(_CreditedTransitions, DictReplayBuffer):
    """:class:`HindsightReplayBuffer` for Dict observations.

    Args:
        *arguments: Those of ``stable_baselines3.common.buffers.DictReplayBuffer``.
        **keywords: Likewise.

    Raises:
        InvalidArgumentError: In ``add``, if an episode ends without usable credit.
    """
