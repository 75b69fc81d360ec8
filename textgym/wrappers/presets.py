"""Environments with wrappers applied, for scripts that only take an id."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import gymnasium as gym
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel

from textgym import wrappers
from textgym.checks import check_flag
from textgym.envs import (
    TextGenerationArguments,
    TextGenerationEnv,
    TextGenerationVectorEnv,
    VectorArguments,
)
from textgym.envs.arguments import keywords_for, takes
from textgym.wrappers import vector

__all__ = [
    "FeaturesArguments",
    "FeaturesVectorArguments",
    "make_features_env",
    "make_features_vector_env",
]

_POTENTIAL = "prefix-score"
"""What pays the dense reward."""


@dataclass(frozen=True)
class _WrapperArguments:
    """What the wrappers of the features environment add to the arguments."""

    model: Annotated[
        str | Path | PreTrainedModel,
        "The language model that computes the features and finds the candidates.",
    ] = "embedded"
    _: KW_ONLY
    k: Annotated[int, "Number of actions; see :class:`textgym.wrappers.TopKActions`."] = 4
    describe_actions: Annotated[
        bool,
        "Whether the observation describes the tokens that the actions stand for; see `top_k` of "
        ":class:`textgym.wrappers.LanguageModelFeatures`.",
    ] = True
    dense: Annotated[
        bool,
        "Whether each step pays the change of the reward model's score of the text so far, instead "
        "of the score at the end.",
    ] = False


@dataclass(frozen=True)
class FeaturesArguments(TextGenerationArguments, _WrapperArguments):
    """The arguments of :func:`make_features_env`, which documents them."""

    _: KW_ONLY
    # The type is wider than that of the base class, which mypy does not allow.
    min_new_tokens: Annotated[
        int | None,
        "Smallest token budget; EOS before that many tokens is illegal. None for `max_new_tokens`.",
    ] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class FeaturesVectorArguments(FeaturesArguments, VectorArguments):
    """The arguments of :func:`make_features_vector_env`, which documents them."""


@takes(FeaturesArguments)
def make_features_env(arguments: FeaturesArguments) -> gym.Env:
    """Make ``ABC-RLHF-Features-v0``: a vector to look at, a few likely tokens to choose from.

    ## Description

    Agents for small control problems take vectors and a handful of actions. This is
    :class:`textgym.envs.TextGenerationEnv` in :class:`textgym.wrappers.LanguageModelFeatures` (with
    ``progress=True``) in :class:`textgym.wrappers.TopKActions`: a frozen language model reads the
    text for the agent, and proposes the tokens that it may choose from.

    ## Observation Space

    With the embedded model ``Box(-inf, inf, (1285,), float32)``:

    | index      | meaning                                                                  |
    |------------|--------------------------------------------------------------------------|
    | 0 … 255    | the language model's last hidden state at the newest token               |
    | 256 … 259  | log-probabilities of the tokens that the actions stand for               |
    | 260 … 1283 | embeddings of these tokens, one after the other                          |
    | 1284       | tokens generated so far, divided by `max_new_tokens`: 0 … 1              |

    An action is the rank of a token, and a rank means another token in every state. So the
    observation describes the tokens. Without that (``describe_actions=False``) a small network has
    to work out from the hidden state which token comes first, second, and so on.

    ## Action Space

    ``Discrete(4)``, or ``Discrete(k)``: action i writes the i-th most likely legal token, 0 the
    most likely. By default EOS is never legal, and so never a candidate.

    ## Rewards

    Those of :class:`textgym.envs.TextGenerationEnv`: 0 until the episode ends, then the score.

    ``ABC-RLHF-Features-Dense-v0`` is the same with ``dense=True``: each step pays the change of the
    reward model's score of the text so far (:class:`textgym.wrappers.PotentialShaping` with the
    prefix score, measured from the prompt). The rewards of an episode then sum to the score minus
    the prompt's own, a constant per prompt, and ``info["score"]`` is the score as ever.

    ## Starting State

    A prompt from the prompt source. `reset` takes the same options as
    :class:`textgym.envs.TextGenerationEnv`.

    ## Episode End

    `terminated` when the token budget is used up. By default every completion has the same number
    of tokens. If budgets differed, they would be a hidden part of the state; with one budget for
    all, the last feature tells how many tokens are left. `truncated` is for limits from outside.

    ## Information

    That of :class:`textgym.envs.TextGenerationEnv`, and from ``TopKActions``:

    | key     | when | type | meaning                  |
    |---------|------|------|--------------------------|
    | `token` | step | int  | the token that was taken |

    ## Arguments

    ```python
    import gymnasium as gym
    import textgym

    env = gym.make("ABC-RLHF-Features-v0", k=8, max_new_tokens=12)
    ```

    ## Version History

    * v0: Initial version.

    Args:
        arguments: The fields of :class:`FeaturesArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("textgym:ABC-RLHF-Features-v0", max_new_tokens=12)
        >>> env.observation_space.shape, env.action_space
        ((1285,), Discrete(4))
    """
    env = TextGenerationEnv(**_base_keywords(TextGenerationArguments, arguments))
    return _wrap(env, arguments, wrappers)


@takes(FeaturesVectorArguments)
def make_features_vector_env(arguments: FeaturesVectorArguments) -> VectorEnv:
    """Make the batched ``ABC-RLHF-Features-v0``; see :func:`make_features_env`.

    Args:
        arguments: The fields of :class:`FeaturesVectorArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """
    envs = TextGenerationVectorEnv(**_base_keywords(VectorArguments, arguments))
    return _wrap(envs, arguments, vector)


def _wrap(env: Any, arguments: FeaturesArguments, forms: ModuleType) -> Any:
    """The environment in the wrappers, all in one of the two forms."""
    if check_flag("dense", arguments.dense):
        env = forms.PotentialShaping(env, _POTENTIAL, start="prompt")
    described = arguments.k if check_flag("describe_actions", arguments.describe_actions) else None
    env = forms.LanguageModelFeatures(env, arguments.model, top_k=described, progress=True)
    return forms.TopKActions(env, arguments.k, arguments.model)


def _base_keywords(dataclass_: type, arguments: FeaturesArguments) -> dict[str, Any]:
    """The arguments of the environment below the wrappers."""
    keywords = keywords_for(dataclass_, arguments)
    if arguments.min_new_tokens is None:
        keywords["min_new_tokens"] = arguments.max_new_tokens
    return keywords
