"""Lets agents choose among the tokens that a language model finds likely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedModel

from textgym.envs import TextGenerationEnv
from textgym.envs.task import TextGenerationTask
from textgym.errors import InvalidArgumentError
from textgym.wrappers._language_model import (
    SharedLanguageModel,
    check_top_k,
    shared_language_model,
)
from textgym.wrappers._text_env import find_text_env, refuse_inside, wrappers_of
from textgym.wrappers._vector import TextVectorWrapper, put

__all__ = ["CandidateReader", "TopKActions", "VectorTopKActions", "check_actions_are_tokens"]


class CandidateReader:
    """Lists the likely tokens after some texts; what the two forms of the wrapper share.

    Args:
        base: The text environment, single or batched.
        model: See :class:`TopKActions`.
        k: As there.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(self, base: Any, model: str | Path | PreTrainedModel, k: int) -> None:
        self._task: TextGenerationTask = base.task
        self.k = check_top_k("k", k, base.task.vocab_size)
        self._language_model: SharedLanguageModel = shared_language_model(base, model)

    def __call__(
        self, texts: Sequence[Sequence[int] | None], num_new_tokens: np.ndarray
    ) -> np.ndarray:
        """List the k most likely legal tokens after each text, the most likely first.

        Args:
            texts: Token ids; None for a row that nobody asks about, whose tokens mean nothing.
            num_new_tokens: How many of the tokens were generated, shape (batch,).

        Returns:
            int64, shape (batch, k).
        """
        said = self._language_model.read(texts)
        legal = self._task.action_masks(num_new_tokens)
        return self._language_model.logprobs(said, legal).topk(self.k).indices.cpu().numpy()


def check_actions_are_tokens(env: Any, space: gym.Space, base_space: gym.Space) -> None:
    """Check that the actions of an environment are tokens, and that no mask relies on it.

    Raises:
        InvalidArgumentError: If a wrapper has changed their meaning, or masks them.
    """
    for one in wrappers_of(env):
        if hasattr(type(one), "action_masks"):
            raise InvalidArgumentError(
                "env",
                env,
                f"{type(one).__name__} masks its tokens, and the actions here are candidates; put "
                "it outside TopKActions",
            )
    if space != base_space:
        raise InvalidArgumentError(
            "env",
            env,
            f"its actions ({space}) are not the tokens ({base_space}); put TopKActions below the "
            "wrapper that changes actions",
        )


class TopKActions(gym.Wrapper[Any, np.int64, Any, np.int64], RecordConstructorArgs):
    """Action i takes the i-th most likely legal token, by a frozen language model.

    A vocabulary is too many actions for an agent that starts from nothing; among a few likely
    tokens every choice makes readable text. While EOS is illegal it is no candidate, whatever the
    model thinks of it. What is not among the k candidates cannot be written: the best completion
    of this environment may be worse than that of the wrapped one.

    Action space: ``Discrete(k)``; 0 is the most likely token. Observations and rewards are those of
    the wrapped environment.

    | key in ``info`` | when | type | meaning                 |
    |-----------------|------|------|-------------------------|
    | `token`         | step | int  | the token that it took  |

    Cost: each token of an episode goes through the language model once, since keys and values are
    kept; wrappers of the same environment with the same model share the pass.

    Args:
        env: A text environment, with any wrappers that leave its actions alone.
        k: Number of candidates, at most the vocabulary's size minus 1.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model, which is put in evaluation mode and must not be trained meanwhile. It must have
            the environment's tokenizer.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import TopKActions
        >>> env = TopKActions(gym.make("ABC-RLHF-v0"), k=8)
        >>> env.action_space
        Discrete(8)
        >>> observation, info = env.reset(seed=0)
        >>> candidates = env.candidates
        >>> _, _, _, _, info = env.step(3)
        >>> info["token"] == int(candidates[3])
        True
    """

    def __init__(
        self, env: gym.Env, k: int = 16, model: str | Path | PreTrainedModel = "embedded"
    ) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, k=k, model=model)
        self._text_env: TextGenerationEnv = find_text_env(env, TextGenerationEnv)
        refuse_inside(env, TopKActions, "actions are numbers of candidates there, not tokens")
        check_actions_are_tokens(env, env.action_space, self._text_env.action_space)
        super().__init__(env)
        self._candidates = CandidateReader(self._text_env, model, k)
        self.k = self._candidates.k
        self.action_space = spaces.Discrete(self.k)

    @property
    def candidates(self) -> np.ndarray:
        """The tokens that the actions stand for now, shape (k,), int64."""
        return self._candidates(self._text_env.texts, self._text_env.num_new_tokens)[0]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a candidate.

        Raises:
            InvalidArgumentError: If there is no such candidate.
        """
        if not self.action_space.contains(action):
            raise InvalidArgumentError(
                "action", action, f"must be the number of a candidate, from 0 to {self.k - 1}"
            )
        token = self.candidates[int(action)]
        observation, reward, terminated, truncated, info = self.env.step(token)
        info["token"] = int(token)
        return observation, reward, terminated, truncated, info


class VectorTopKActions(TextVectorWrapper):
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
        refuse_inside(env, VectorTopKActions, "actions are numbers of candidates there, not tokens")
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
