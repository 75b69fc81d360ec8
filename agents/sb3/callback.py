"""Hindsight credit for the on-policy algorithms of Stable-Baselines3.

Credit exists only once an episode has ended. So the hook must come after the rollout and before the
update, and it must see the infos. A custom rollout buffer would come at the right time, but never
sees the infos. A callback sees both: the infos in ``on_step``, and the full buffer in
``on_rollout_end``, which runs after ``compute_returns_and_advantage`` and right before ``train``.
There the rewards are replaced, and advantages and returns are changed with them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from textgym.errors import InvalidArgumentError

from .credit import credit_of, rewards_of_the_rest
from .rollout_buffer import add_to_rewards, check_has_rollouts, check_rewards_as_paid

__all__ = ["HindsightCreditCallback"]


class HindsightCreditCallback(BaseCallback):
    """Lets PPO, A2C and similar algorithms learn from ``info["credit"]`` instead of the rewards.

    It works with any environment whose infos hold ``"credit"`` at the end of an episode, one number
    per step, with any number of environments and any rollout buffer. The logged episode returns
    stay those of the environment. If the algorithm added a bootstrapped value to the last reward of
    a truncated episode, it is kept.

    An episode that is still running when the rollout is full has no credit yet, so its steps are
    learned from as they were paid, with the critic's value of what follows. The credit that they
    miss is paid at the first step of the next rollout; see
    :func:`textgym.agents.sb3.credit.rewards_of_the_rest`. This keeps the return, but moves credit
    to another step, so let ``n_steps`` cover several episodes.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from stable_baselines3 import PPO
        >>> from textgym.wrappers import CreditAssignment
        >>> env = CreditAssignment(gym.make("ABC-RLHF-v0"), "abc")
        >>> agent = PPO("MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1)
        >>> _ = agent.learn(32, callback=HindsightCreditCallback())
        >>> int((agent.rollout_buffer.rewards != 0).sum()) > 3  # not only where episodes ended
        True

    Raises:
        InvalidArgumentError: When training starts, if the algorithm has no rollout buffer or the
            environment normalises rewards. When an episode ends, if it has no usable credit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._paid: list[NDArray[np.float32]] = []
        self._ends: list[tuple[int, int, NDArray[np.float32]]] = []

    def _init_callback(self) -> None:
        check_has_rollouts(
            self.model, "off-policy ones take replay_buffer_class=HindsightReplayBuffer"
        )
        check_rewards_as_paid(
            self.model, "the credit of an episode sums to its rewards before they were normalised"
        )

    def _on_rollout_start(self) -> None:
        self._paid, self._ends = [], []

    def _on_step(self) -> bool:
        # A copy, because the algorithm adds bootstrapped values to this array after the callback.
        self._paid.append(np.array(self.locals["rewards"], dtype=np.float32))
        for row in np.flatnonzero(self.locals["dones"]).tolist():
            credit = credit_of(self.locals["infos"][row])
            if credit is not None:
                self._ends.append((len(self._paid) - 1, row, credit))
        return True

    def _on_rollout_end(self) -> None:
        buffer: RolloutBuffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        paid = np.stack(self._paid)  # (num_steps, num_envs), like all arrays of the buffer
        change = np.zeros_like(paid)
        for end, row, credit in self._ends:
            starts = np.flatnonzero(buffer.episode_starts[: end + 1, row])
            began_here = len(starts) > 0
            steps = slice(starts[-1] if began_here else 0, end + 1)
            num_left = steps.stop - steps.start
            if began_here != (len(credit) == num_left) or len(credit) < num_left:
                raise InvalidArgumentError(
                    'info["credit"]',
                    credit,
                    f"the episode had {num_left if began_here else f'more than {num_left}'} "
                    "steps: provide one number per step",
                )
            # Bootstrapped values and other terms that the buffer has on top of ``paid`` are kept.
            rewards = rewards_of_the_rest(paid[steps, row], credit, buffer.gamma)
            change[steps, row] = rewards - paid[steps, row]
        add_to_rewards(buffer, change)
