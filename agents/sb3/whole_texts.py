"""Rollout buffers whose minibatches are whole texts, instead of tokens from all of them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer

__all__ = ["WholeTextDictRolloutBuffer", "WholeTexts", "shuffled_by_text"]


def shuffled_by_text(
    episode_starts: NDArray[Any], generator: np.random.Generator
) -> NDArray[np.int64]:
    """The samples of a rollout, text after text, the texts in random order.

    Example:
        >>> starts = np.array([[1, 0], [0, 0], [1, 1]])  # The second row begins within an episode.
        >>> shuffled_by_text(starts, np.random.default_rng(0)).tolist()
        [3, 4, 0, 1, 2, 5]

    Args:
        episode_starts: 1 at the first step of an episode, (num_steps, num_envs).
        generator: Draws the order.

    Returns:
        Indices int64 (num_steps * num_envs,), of samples counted row after row: step t of row n is
        ``n * num_steps + t``.
    """
    starts = episode_starts.astype(bool)
    starts[0] = True
    first = np.flatnonzero(starts.T)
    texts = np.split(np.arange(starts.size), first[1:])
    return np.concatenate([texts[i] for i in generator.permutation(len(texts))])


class WholeTexts:
    """A mixin that lets a rollout buffer of SB3 hand out whole texts.

    SB3 draws the samples of a minibatch from all texts of the rollout, so a language model has to
    read nearly all of these for each minibatch. Here a minibatch has the samples of a few texts. If
    ``batch_size`` does not end with a text, the rest is in the next minibatch. Only the minibatches
    differ: every sample is handed out once per epoch, as it is.
    """

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """The samples, in minibatches; see the base class."""
        base: Any = super()
        # Seeded by NumPy's global generator, from which SB3 draws its own order.
        generator = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
        self._order = shuffled_by_text(self.episode_starts, generator)  # type: ignore[attr-defined]
        self._num_taken = 0
        yield from base.get(batch_size)

    def _get_samples(self, batch_inds: NDArray[Any], env: Any = None) -> Any:
        """The next samples by text, as many as there are indices."""
        base: Any = super()
        start, self._num_taken = self._num_taken, self._num_taken + len(batch_inds)
        return base._get_samples(self._order[start : self._num_taken], env)


class WholeTextDictRolloutBuffer(WholeTexts, DictRolloutBuffer):
    """SB3's own buffer, with whole texts as minibatches: PPO's ``rollout_buffer_class``.

    An update with :class:`textgym.agents.sb3.LanguageModelPolicy` then reads every text about once.
    The advantages of a minibatch, which PPO normalises, are those of a few texts.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from stable_baselines3 import PPO
        >>> from textgym.agents.sb3 import LanguageModelPolicy
        >>> env = gym.make("ABC-RLHF-v0")
        >>> buffer = {"rollout_buffer_class": WholeTextDictRolloutBuffer}
        >>> agent = PPO(LanguageModelPolicy, env, n_steps=16, batch_size=8, n_epochs=1, **buffer)
        >>> _ = agent.learn(16)
    """
