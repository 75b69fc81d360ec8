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

    All environments write to the same slot of the ring buffer at a time. So an episode lies in as
    many consecutive slots as it had steps, and the last of them was just written. Example: five
    slots, and an episode of four steps that began in slot 3. The next transition goes to ``pos``::

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
        """Store a transition of each environment, and the credit of episodes that it ends."""
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
                    "it reaches back into the previous episode: provide one number per step",
                )
            buffer.rewards[slots, row] = credit[::-1][:num_left]


class HindsightReplayBuffer(_CreditedTransitions, ReplayBuffer):
    """A replay buffer that replaces the rewards of an episode by its credit when it ends.

    For algorithms such as DQN: ``DQN(..., replay_buffer_class=HindsightReplayBuffer)``. The infos
    of the environment must hold ``"credit"`` at the end of an episode, one number per step. The
    buffer relabels rewards; unlike SB3's ``HerReplayBuffer`` it has nothing to do with goals.

    Until its episode has ended, a transition is sampled with what its step paid. If the ring buffer
    has overwritten a transition, its credit is lost with it. That is harmless for one-step targets,
    which need only a transition's own reward. ``optimize_memory_usage`` works, because it only
    affects observations. Credit, like rewards, is stored before ``VecNormalize`` scales it. The
    arguments are those of ``stable_baselines3.common.buffers.ReplayBuffer``. For Dict observations
    use :class:`HindsightDictReplayBuffer`.

    Raises:
        InvalidArgumentError: In ``add``, if an episode ends without usable credit.
    """


class HindsightDictReplayBuffer(_CreditedTransitions, DictReplayBuffer):
    """:class:`HindsightReplayBuffer` for Dict observations.

    The arguments are those of ``stable_baselines3.common.buffers.DictReplayBuffer``.

    Raises:
        InvalidArgumentError: In ``add``, if an episode ends without usable credit.
    """
