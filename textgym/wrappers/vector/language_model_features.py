"""The vector form of the wrapper that shows features in place of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedModel

from textgym.wrappers._text_env import refuse_inside
from textgym.wrappers.language_model_features import FeatureReader, check_tokens_are_observed
from textgym.wrappers.vector._base import TextVectorWrapper

__all__ = ["LanguageModelFeatures"]


class LanguageModelFeatures(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.LanguageModelFeatures`.

    Observations are float32 of shape (num_envs, size). Under ``AutoresetMode.SAME_STEP`` the
    entries of ``infos["final_obs"]`` are features too, of shape (size,).

    Args:
        env: A batched text environment, with any wrappers that leave its observations alone.
        model: See :class:`textgym.wrappers.LanguageModelFeatures`.
        top_k: As there.
        progress: As there.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import LanguageModelFeatures
        >>> envs = LanguageModelFeatures(gym.make_vec("ABC-RLHF-v0", num_envs=4))
        >>> observations, infos = envs.reset(seed=0)
        >>> observations.shape
        (4, 256)
    """

    def __init__(
        self,
        env: VectorEnv,
        model: str | Path | PreTrainedModel = "embedded",
        *,
        top_k: int | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(env)
        refuse_inside(env, LanguageModelFeatures, "features of features are none of the text")
        base_space = self._text_env.single_observation_space
        check_tokens_are_observed(env, env.single_observation_space, base_space)
        self._features = FeatureReader(self._text_env, model, top_k, progress)
        self.single_observation_space = self._features.space
        self.observation_space = batch_space(self._features.space, self.num_envs)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes."""
        _, infos = self.env.reset(seed=seed, options=options)
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, Any, Any, Any, dict[str, Any]]:
        """Step; the features are those of the new texts."""
        num_after = self._text_env.num_new_tokens + 1
        _, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            infos["final_obs"] = self._final_observations(infos["final_obs"], num_after)
        return self._observations(), rewards, terminated, truncated, infos

    def _observations(self) -> np.ndarray:
        return self._features(self._text_env.texts, self._text_env.num_new_tokens)

    def _final_observations(self, final: np.ndarray, num_after: np.ndarray) -> np.ndarray:
        """Features of the texts that were replaced in this step already, in an object array."""
        # They continue what was read before, and the other rows go on: it all is one pass.
        texts, num_new_tokens = self._text_env.texts, self._text_env.num_new_tokens
        for row, observation in enumerate(final):
            if observation is not None:
                valid = observation["attention_mask"].astype(np.bool_)
                texts[row] = observation["input_ids"][valid].tolist()
                num_new_tokens[row] = num_after[row]
        features = self._features(texts, num_new_tokens)
        result = np.full(self.num_envs, None, dtype=object)
        for row, observation in enumerate(final):
            if observation is not None:
                result[row] = features[row].copy()
        return result
