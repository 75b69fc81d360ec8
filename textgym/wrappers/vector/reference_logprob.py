"""The vector form of the wrapper that pays for likely text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel

from textgym.wrappers._text_env import refuse_inside
from textgym.wrappers.reference_logprob import ReferenceReader
from textgym.wrappers.vector._base import RewardTerm

__all__ = ["ReferenceLogProb"]


class ReferenceLogProb(RewardTerm):
    """The vector form of :class:`textgym.wrappers.ReferenceLogProb`.

    ``infos`` holds ``unshaped_reward`` and ``reference_logprob`` for every row that acted, and
    ``unshaped_return`` and ``shaped_return`` for those whose episode ended (under
    ``AutoresetMode.SAME_STEP``, in ``infos["final_info"]``, with the terms of the last step).

    Args:
        env: A batched text environment, with any wrappers but another of this class.
        coef: See :class:`textgym.wrappers.ReferenceLogProb`.
        model: As there.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import ReferenceLogProb
        >>> envs = ReferenceLogProb(gym.make_vec("ABC-RLHF-v0", num_envs=4), coef=0.05)
        >>> observations, infos = envs.reset(seed=0)
        >>> _, rewards, _, _, infos = envs.step(envs.action_space.sample())
        >>> bool((infos["unshaped_reward"] + infos["reference_logprob"] == rewards).all())
        True
    """

    term = "reference_logprob"

    def __init__(
        self, env: VectorEnv, coef: float, model: str | Path | PreTrainedModel = "embedded"
    ) -> None:
        super().__init__(env)
        refuse_inside(env, ReferenceLogProb, "its term would be paid, and named, twice")
        self._reference = ReferenceReader(self._text_env, coef, model)
        self.coef = self._reference.coef

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the term to the rewards of the rows that acted."""
        texts = zip(self._text_env.texts, self._text_env.ended, strict=True)
        asked = [None if ended else text for text, ended in texts]
        self._reference.read(asked, self._text_env.num_new_tokens)
        return super().step(actions)

    def _term(self, acted: np.ndarray, finished: np.ndarray) -> np.ndarray:
        return self._reference.terms(self._text_env.tokens_taken)
