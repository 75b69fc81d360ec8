"""Shows agents what a frozen language model makes of the text, instead of token ids."""

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

from textgym.checks import check_flag, check_whole_number
from textgym.envs import TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper
from textgym.wrappers._language_model import Texts, shared_language_model
from textgym.wrappers._text_env import refuse_inside, row_spaces

__all__ = ["FeatureReader", "LanguageModelFeatures", "VectorLanguageModelFeatures"]


class FeatureReader:
    """Computes the feature vectors of texts, for both forms of the wrapper.

    Args:
        env: The environment to wrap, single or batched.
        model: The language model, or its name.
        top_k: How many candidates the features describe; None for none.
        progress: Whether the features tell how many tokens have been generated.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self, env: Any, model: str | Path | PreTrainedModel, top_k: int | None, progress: bool
    ) -> None:
        _check_observations(env)
        base: TextEnvironment = env.unwrapped
        self._task = base.task
        self.progress = check_flag("progress", progress)
        most = base.task.vocab_size - 1  # EOS may be illegal.
        self.top_k = None if top_k is None else check_whole_number("top_k", top_k, 1, most)
        self._language_model = shared_language_model(base, model)
        size = self._language_model.hidden_size + self.progress
        if self.top_k is not None:
            size += self.top_k * (1 + self._language_model.embedding_size)
        self.space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def __call__(self, texts: Texts) -> np.ndarray:
        """The features of a batch of texts, float32, shape (batch, number of features)."""
        said = self._language_model.read(texts.ids)
        parts = [said.hidden.cpu().numpy()]
        if self.top_k is not None:
            legal = self._task.action_masks(texts.num_new_tokens)
            top = self._language_model.logprobs(said, legal).topk(self.top_k)
            embeddings = self._language_model.embed(top.indices).flatten(1)
            parts += [top.values.cpu().numpy(), embeddings.cpu().numpy()]
        if self.progress:
            used = texts.num_new_tokens[:, None] / self._task.max_new_tokens
            parts.append(used.astype(np.float32))
        return np.concatenate(parts, axis=1)


def _check_observations(env: Any) -> None:
    """Check that the observations are still the tokens, so that replacing them loses nothing.

    Raises:
        InvalidArgumentError: If a wrapper has changed them.
    """
    refuse_inside(
        env,
        (LanguageModelFeatures, VectorLanguageModelFeatures),
        "one wrapper of this class is enough, since it replaces the observation",
    )
    if row_spaces(env)[0] != row_spaces(env.unwrapped)[0]:
        raise InvalidArgumentError(
            "env",
            env,
            "its observations are no longer the tokens, and LanguageModelFeatures would discard "
            "them; put it below the wrapper that changes observations",
        )


class LanguageModelFeatures(TextWrapper, gym.ObservationWrapper[Any, Any, Any]):
    r"""Replaces the observation by features that a frozen language model computes.

    An agent with a small network cannot learn to read from rewards alone. Here it starts from what
    a language model knows: the last hidden state at the newest token, from which the model predicts
    the next token. With ``top_k``, the observation also describes the k most likely legal tokens,
    in the order of :class:`textgym.wrappers.TopKActions`.

    Observation space: ``Box(-inf, inf, (size,), float32)``, in this order:

    | features             | number              | meaning                                       |
    |----------------------|---------------------|-----------------------------------------------|
    | hidden state         | `hidden_size`       | last layer, newest token                      |
    | log-probabilities \* | `top_k`             | normalised over the legal tokens              |
    | embeddings \*        | `top_k · embedding` | input embeddings, most likely token first     |
    | progress \*\*        | 1                   | tokens generated, divided by `max_new_tokens` |

    \* with ``top_k``; \*\* with ``progress=True``. The action space and ``info`` are those of the
    wrapped environment. The hidden state knows the text, but not where the prompt ended. An agent
    that must know how many tokens are left needs ``progress``, and the same budget in all episodes:
    ``min_new_tokens == max_new_tokens``.

    Cost: each token of an episode goes through the language model once, since keys and values are
    kept. Wrappers of the same environment with the same model share the pass.

    Args:
        env: A text environment, with any wrappers that leave its observations alone.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.
        top_k: How many candidates the observation describes; None for none.
        progress: Whether the observation tells how many tokens have been generated.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import LanguageModelFeatures
        >>> env = LanguageModelFeatures(gym.make("ABC-RLHF-v0"), top_k=4)
        >>> observation, info = env.reset(seed=0)
        >>> observation.shape  # 256 + 4 + 4 * 256
        (1284,)
    """

    def __init__(
        self,
        env: gym.Env,
        model: str | Path | PreTrainedModel = "embedded",
        *,
        top_k: int | None = None,
        progress: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, _disable_deepcopy=True, model=model, top_k=top_k, progress=progress
        )
        super().__init__(env)
        self._features = FeatureReader(env, model, top_k, progress)
        self.observation_space = self._features.space

    def observation(self, observation: Any) -> np.ndarray:
        """The features of the text now, in place of its tokens."""
        return self._features(Texts.of(self._text_env.completions))[0]


class VectorLanguageModelFeatures(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.LanguageModelFeatures`.

    Observations are float32 of shape (num_envs, size). Under ``AutoresetMode.SAME_STEP`` the
    entries of ``infos["final_obs"]`` are features too, of shape (size,).

    Args:
        env: A batched text environment, with any wrappers that leave its observations alone.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.
        top_k: How many candidates the observation describes; None for none.
        progress: Whether the observation tells how many tokens have been generated.

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
        self._features = FeatureReader(env, model, top_k, progress)
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
        _, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            infos["final_obs"] = self._final_observations()
        return self._observations(), rewards, terminated, truncated, infos

    def _observations(self) -> np.ndarray:
        return self._features(Texts.of(self._text_env.completions))

    def _final_observations(self) -> np.ndarray:
        """Features of the texts that the last step finished and replaced, in an object array."""
        # They continue what was read before, so this is one pass with the rows that go on.
        last = self._text_env.last_step
        assert last.scored is not None
        texts, final = Texts.of(self._text_env.completions), Texts.of(last.scored)
        finished = np.flatnonzero(last.finished).tolist()
        for row, ids in zip(finished, final.ids, strict=True):
            texts.ids[row] = ids
        texts.num_new_tokens[finished] = final.num_new_tokens
        features = self._features(texts)
        result = np.full(self.num_envs, None, dtype=np.object_)
        for row in finished:
            result[row] = features[row].copy()
        return result
