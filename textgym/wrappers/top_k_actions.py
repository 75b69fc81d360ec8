"""Lets agents choose among the tokens that a language model finds most likely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from transformers import PreTrainedModel

from textgym.checks import check_whole_number
from textgym.envs import TextEnvironment
from textgym.envs.infos import put
from textgym.envs.task import check_actions
from textgym.errors import InvalidArgumentError
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper
from textgym.wrappers._language_model import Texts, shared_language_model
from textgym.wrappers._text_env import refuse_inside, row_spaces, wrappers_of

__all__ = ["CandidateReader", "TopKActions", "VectorTopKActions"]


class CandidateReader:
    """Lists the likely next tokens of texts, for both forms of the wrapper.

    Args:
        env: The environment to wrap, single or batched.
        model: The language model, or its name.
        k: Number of candidates.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(self, env: Any, model: str | Path | PreTrainedModel, k: int) -> None:
        _check_actions(env)
        base: TextEnvironment = env.unwrapped
        self._task = base.task
        self.k = check_whole_number("k", k, 1, base.task.vocab_size - 1)  # EOS may be illegal.
        self._language_model = shared_language_model(base, model)

    def __call__(self, texts: Texts) -> np.ndarray:
        """The k most likely legal tokens after each text, most likely first.

        Args:
            texts: The texts. The candidates of rows not requested mean nothing.

        Returns:
            int64, shape (batch, k).
        """
        said = self._language_model.read(texts.ids)
        legal = self._task.action_masks(texts.num_new_tokens)
        return self._language_model.logprobs(said, legal).topk(self.k).indices.cpu().numpy()


def _check_actions(env: Any) -> None:
    """Check that the actions of an environment are tokens, and that no wrapper masks them.

    Raises:
        InvalidArgumentError: If a wrapper has changed their meaning, or masks them.
    """
    refuse_inside(
        env,
        (TopKActions, VectorTopKActions),
        "actions are then indices of candidates, not tokens",
    )
    for one in wrappers_of(env):
        if hasattr(type(one), "action_masks"):
            raise InvalidArgumentError(
                "env",
                env,
                f"{type(one).__name__} masks tokens, and actions here will be candidates; put it "
                "outside TopKActions",
            )
    (_, actions), (_, tokens) = row_spaces(env), row_spaces(env.unwrapped)
    if actions != tokens:
        raise InvalidArgumentError(
            "env",
            env,
            f"its actions ({actions}) are not the tokens ({tokens}); put TopKActions below the "
            "wrapper that changes actions",
        )


class TopKActions(TextWrapper):
    """Action i takes the i-th most likely legal token, according to a frozen language model.

    A whole vocabulary is too many actions for an agent that starts from nothing. Among a few likely
    tokens, every choice makes readable text. EOS is not a candidate while it is illegal, however
    likely the model finds it. Tokens outside the k candidates cannot be written, so the best
    completion here may be worse than that of the wrapped environment.

    Action space: ``Discrete(k)``; 0 is the most likely token. Observations and rewards are those of
    the wrapped environment.

    | key in ``info`` | when | type | meaning                  |
    |-----------------|------|------|--------------------------|
    | `token`         | step | int  | the token that was taken |

    Cost: each token of an episode goes through the language model once, since keys and values are
    kept. Wrappers of the same environment with the same model share the pass.

    Args:
        env: A text environment, with any wrappers that leave its actions alone.
        k: Number of candidates, at most the vocabulary's size minus 1.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.

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
        super().__init__(env)
        self._candidates = CandidateReader(env, model, k)
        self.k = self._candidates.k
        self.action_space = spaces.Discrete(self.k)

    @property
    def candidates(self) -> np.ndarray:
        """The tokens that the actions stand for now, shape (k,), int64."""
        return self._candidates(Texts.of(self._text_env.completions))[0]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a candidate.

        Raises:
            InvalidArgumentError: If the action is not the index of a candidate.
        """
        if not self.action_space.contains(action):
            raise InvalidArgumentError(
                "action", action, f"must be the index of a candidate, from 0 to {self.k - 1}"
            )
        token = self.candidates[int(action)]
        observation, reward, terminated, truncated, info = self.env.step(token)
        info["token"] = int(token)
        return observation, reward, terminated, truncated, info


class VectorTopKActions(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.TopKActions`.

    ``infos["token"]`` holds the tokens of the rows that acted. Under ``AutoresetMode.SAME_STEP``,
    ``infos["final_info"]`` also holds those of the rows that finished.

    Args:
        env: A batched text environment, with any wrappers that leave its actions alone.
        k: Number of candidates, at most the vocabulary's size minus 1.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.

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
        self._candidates = CandidateReader(env, model, k)
        self.k = self._candidates.k
        self.single_action_space = spaces.Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    @property
    def candidates(self) -> np.ndarray:
        """The tokens that the actions stand for now, shape (num_envs, k), int64.

        They mean nothing in rows whose episode has ended.
        """
        ended = self._text_env.ended
        if ended.all():
            return np.zeros((self.num_envs, self.k), dtype=np.int64)
        return self._candidates(Texts.of(self._text_env.completions, requested=~ended))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a candidate in every row.

        Raises:
            InvalidArgumentError: If the actions are not indices of candidates, one per row.
        """
        chosen = check_actions(actions, self.num_envs, self.k, "indices of candidates,")
        tokens = self.candidates[np.arange(self.num_envs), chosen]
        observations, rewards, terminated, truncated, infos = self.env.step(tokens)
        last = self._text_env.last_step
        acted = last.tokens >= 0
        put(infos, "token", tokens[acted], acted)
        if self._restarts_at_once and last.finished.any():
            put(self._final_infos(infos), "token", tokens[last.finished], last.finished)
        return observations, rewards, terminated, truncated, infos
