"""The vector form of the wrapper that lets agents choose among likely tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedModel

from textgym.errors import InvalidArgumentError
from textgym.wrappers._text_env import refuse_inside
from textgym.wrappers.top_k_actions import CandidateReader, check_actions_are_tokens
from textgym.wrappers.vector._base import TextVectorWrapper, put

__all__ = ["TopKActions"]


class TopKActions(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.TopKActions`.

    ``infos["token"]`` holds the tokens of the rows that acted (under ``AutoresetMode.SAME_STEP``
    those of finished rows are in ``infos["final_info"]`` too).

    Args:
        env: A batched text environment, with any wrappers that leave its actions alone.
        k: See :class:`textgym.wrappers.TopKActions`.
        model: As there.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import TopKActions
        >>> envs = TopKActions(gym.make_vec("ABC-RLHF-v0", num_envs=4), k=8)
        >>> observations, infos = envs.reset(seed=0)
        >>> best = envs.candidates[:, 0]
        >>> *_, infos = envs.step([0, 0, 0, 0])
        >>> bool((infos["token"] == best).all())
        True
    """

    def __init__(
        self, env: VectorEnv, k: int = 16, model: str | Path | PreTrainedModel = "embedded"
    ) -> None:
        super().__init__(env)
        refuse_inside(env, TopKActions, "actions are numbers of candidates there, not tokens")
        check_actions_are_tokens(env, env.single_action_space, self._text_env.single_action_space)
        self._candidates = CandidateReader(self._text_env, model, k)
        self.k = self._candidates.k
        self.single_action_space = spaces.Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def candidates(self) -> np.ndarray:
        """The tokens that the actions stand for now, shape (num_envs, k), int64.

        In rows whose episode has ended they mean nothing.
        """
        texts = zip(self._text_env.texts, self._text_env.ended, strict=True)
        asked = [None if ended else text for text, ended in texts]
        if not any(asked) and self._text_env.ended.any():  # All rows wait.
            return np.zeros((self.num_envs, self.k), dtype=np.int64)
        return self._candidates(asked, self._text_env.num_new_tokens)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a candidate in every row.

        Raises:
            InvalidArgumentError: If there are no such candidates.
        """
        chosen = np.asarray(actions)
        if (
            chosen.shape != (self.num_envs,)
            or chosen.dtype.kind not in "iu"
            or chosen.min() < 0
            or chosen.max() >= self.k
        ):
            raise InvalidArgumentError(
                "actions",
                actions,
                f"must be {self.num_envs} numbers of candidates, from 0 to {self.k - 1}",
            )
        tokens = self.candidates[np.arange(self.num_envs), chosen]
        observations, rewards, terminated, truncated, infos = self.env.step(tokens)
        put(infos, "token", tokens, self._acted)
        if self._restarts_at_once and self._finished.any():
            put(self._final_infos(infos), "token", tokens, self._finished)
        return observations, rewards, terminated, truncated, infos
