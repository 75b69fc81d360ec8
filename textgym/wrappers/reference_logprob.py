"""Pays for text that a reference model finds likely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel

from textgym.checks import check_number
from textgym.envs import TextEnvironment
from textgym.models.incremental import NextToken
from textgym.wrappers._language_model import Texts, shared_language_model
from textgym.wrappers._reward_term import RewardTerm, TermReader, VectorRewardTerm
from textgym.wrappers._text_env import refuse_inside

__all__ = ["ReferenceLogProb", "ReferenceReader", "VectorReferenceLogProb"]


class ReferenceReader(TermReader):
    """Log-probabilities of the tokens that a step takes, for both forms of the wrapper.

    Args:
        env: The environment to wrap, single or batched.
        coef: Factor on the log-probability.
        model: The language model, or its name.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(self, env: Any, coef: float, model: str | Path | PreTrainedModel) -> None:
        refuse_inside(
            env,
            (ReferenceLogProb, VectorReferenceLogProb),
            "a second term of this kind would be paid twice, and reported under the same name",
        )
        self.coef = check_number("coef", coef)
        self._base: TextEnvironment = env.unwrapped
        self._language_model = shared_language_model(self._base, model)
        self._said: NextToken | None = None
        self._legal = np.zeros((0, 0), dtype=np.bool_)

    def before_step(self) -> None:
        """Read the states, except in rows that wait to be reset."""
        texts = Texts.of(self._base.completions, requested=~self._base.ended)
        self._said = self._language_model.read(texts.ids) if any(texts.ids) else None
        self._legal = self._base.task.action_masks(texts.num_new_tokens)

    def terms(self, going_on: np.ndarray) -> np.ndarray:
        """The terms of the step just taken: coef · log π(token), whether it was the last or not."""
        tokens = self._base.last_step.tokens
        acted = tokens >= 0
        if self._said is None or not acted.any():
            return np.zeros(len(tokens))
        at, taken = np.flatnonzero(acted), tokens[acted]
        self._legal[at, taken] = True  # If it was illegal, π is taken as if it were legal.
        logprobs = self._language_model.logprobs(self._said, self._legal).cpu().numpy()
        terms = np.zeros(len(tokens))
        terms[at] = self.coef * logprobs[at, taken].astype(np.float64)
        return terms


class ReferenceLogProb(RewardTerm):
    """Adds coef · log π(a|s) to every reward, where π is a frozen reference language model.

    Reward models often like text that nobody would write. This term keeps an agent close to natural
    language. With an entropy bonus of the same size it is the KL penalty of RLHF,
    -coef · KL(agent ‖ π), for agents that cannot compute that penalty themselves:
    -KL = E[log π] + entropy.

    π is normalised over the legal tokens, so EOS is left out while it is illegal, as in agents that
    sample under the mask. An illegal token is measured as if it were legal. The token is always the
    one that the text got, even if actions mean something else, as in
    :class:`textgym.wrappers.TopKActions`; π is normalised over all legal tokens there too.

    Spaces are those of the wrapped environment.

    | key in ``info``     | when | type  | meaning                                        |
    |---------------------|------|-------|------------------------------------------------|
    | `unshaped_reward`   | step | float | what the environment paid                      |
    | `reference_logprob` | step | float | the term that is added, with its coefficient   |
    | `unshaped_return`   | end  | float | sum of `unshaped_reward`, undiscounted         |
    | `shaped_return`     | end  | float | sum of the rewards, undiscounted               |

    Cost: each token of an episode goes through the language model once, since keys and values are
    kept. Wrappers of the same environment with the same model share the pass.

    Args:
        env: A text environment, with any wrappers except another of this class.
        coef: Factor on the log-probability, in units of the score per nat; positive to stay close.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import ReferenceLogProb, TopKActions
        >>> env = ReferenceLogProb(TopKActions(gym.make("ABC-RLHF-v0"), k=8), coef=0.05)
        >>> observation, info = env.reset(seed=0)
        >>> _, reward, _, _, info = env.step(0)
        >>> info["unshaped_reward"], reward == info["reference_logprob"] < 0
        (0.0, True)
    """

    term = "reference_logprob"

    def __init__(
        self, env: gym.Env, coef: float, model: str | Path | PreTrainedModel = "embedded"
    ) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, coef=coef, model=model)
        super().__init__(env)
        reader = ReferenceReader(env, coef, model)
        self._term_reader = reader
        self.coef = reader.coef


class VectorReferenceLogProb(VectorRewardTerm):
    """The vector form of :class:`textgym.wrappers.ReferenceLogProb`.

    ``infos`` holds ``unshaped_reward`` and ``reference_logprob`` for every row that acted, and
    ``unshaped_return`` and ``shaped_return`` for those whose episode ended. Under
    ``AutoresetMode.SAME_STEP`` the returns are in ``infos["final_info"]``, with the terms of the
    last step.

    Args:
        env: A batched text environment, with any wrappers except another of this class.
        coef: Factor on the log-probability, in units of the score per nat; positive to stay close.
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded causal language
            model with the environment's tokenizer. A loaded model is put in evaluation mode, and
            must not be trained while the environment is in use.

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
        reader = ReferenceReader(env, coef, model)
        self._term_reader = reader
        self.coef = reader.coef
