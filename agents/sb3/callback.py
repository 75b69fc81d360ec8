"""Hindsight credit for the on-policy algorithms of Stable-Baselines3.

Credit exists only when an episode has ended. The hook must therefore lie behind the rollout and
before the update, and it must know the infos. A rollout buffer of one's own lies there, but is
never shown the infos; a callback is shown everything: the infos in ``on_step``, and the full
buffer in ``on_rollout_end``, which comes after ``compute_returns_and_advantage`` and right before
``train``. There the rewards are replaced, and the advantages and returns follow. Asking the
buffer to compute these anew would take the values behind its last step, which PPO and A2C show to
a callback and MaskablePPO does not; the change alone takes no values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from textgym.errors import InvalidArgumentError

from .credit import change_of_advantages, credit_of, rewards_of_the_rest

__all__ = ["HindsightCreditCallback"]


class HindsightCreditCallback(BaseCallback):
    """Has PPO, A2C and their kin learn from ``info["credit"]`` in place of the rewards.

    For any environment whose infos hold ``"credit"`` at the end of an episode, one number per
    step, and with any number of environments and any rollout buffer. The logged episode returns
    stay those of the environment. A bootstrapped value that the algorithm added to the last
    reward of a truncated episode is kept.

    The end of an episode that is still under way when the rollout is full is unknown, so its steps
    are learned from as they were paid, and from the critic. What they miss is paid at the first
    step of the next rollout, see :func:`textgym.agents.sb3.credit.rewards_of_the_rest`. The return
    is thus kept, but not the place: let ``n_steps`` be several episodes long.

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
            environment normalises rewards; when an episode ends, if it brings no usable credit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._paid: list[NDArray[np.float32]] = []
        self._ends: list[tuple[int, int, NDArray[np.float32]]] = []

    def _init_callback(self) -> None:
        if not isinstance(getattr(self.model, "rollout_buffer", None), RolloutBuffer):
            raise InvalidArgumentError(
                "callback",
                type(self.model).__name__,
                "this algorithm has no rollout buffer; off-policy ones take "
                "replay_buffer_class=HindsightReplayBuffer",
            )
        normalizer = self.model.get_vec_normalize_env()
        if normalizer is not None and normalizer.norm_reward:
            raise InvalidArgumentError(
                "env",
                normalizer,
                "the credit of an episode sums to what its steps paid before they were "
                "normalised: use VecNormalize(..., norm_reward=False)",
            )

    def _on_rollout_start(self) -> None:
        self._paid, self._ends = [], []

    def _on_step(self) -> bool:
        # A copy: the algorithm adds bootstrapped values to this very array after the callback.
        self._paid.append(np.array(self.locals["rewards"], dtype=np.float32))
        for row in np.flatnonzero(self.locals["dones"]).tolist():
            credit = credit_of(self.locals["infos"][row])
            if credit is not None:
                self._ends.append((len(self._paid) - 1, row, credit))
        return True

    def _on_rollout_end(self) -> None:
        buffer: RolloutBuffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        paid = np.stack(self._paid)  # (num_steps, num_envs), as all arrays of the buffer
        before = buffer.rewards.copy()
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
                    "steps: hand over one number per step",
                )
            bootstrapped = buffer.rewards[steps, row] - paid[steps, row]  # 0 but at a truncation
            rewards = rewards_of_the_rest(paid[steps, row], credit, buffer.gamma)
            buffer.rewards[steps, row] = rewards + bootstrapped
        change = change_of_advantages(
            buffer.rewards - before, buffer.episode_starts, buffer.gamma * buffer.gae_lambda
        )
        buffer.advantages += change
        buffer.returns += change
