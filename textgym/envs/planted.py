"""The planted task: text generation in which the true contribution of every token is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.envs.arguments import (
    TextGenerationArguments,
    VectorArguments,
    document_arguments,
    init_takes,
)
from textgym.envs.task import TextGenerationTask, token_lists
from textgym.envs.text_generation import TextGenerationEnv
from textgym.envs.text_generation_vector import TextGenerationVectorEnv
from textgym.errors import InvalidArgumentError
from textgym.models import (
    Completions,
    Readout,
    RewardFunction,
    RewardModel,
    ScoredCompletions,
    TextRewardModel,
)
from textgym.planted import PROMPTS, TOKEN_IDS, contributions, optimal_score, score
from textgym.prompts import PromptSource

__all__ = [
    "PlantedArguments",
    "PlantedEnv",
    "PlantedTask",
    "PlantedVectorArguments",
    "PlantedVectorEnv",
    "ScoredByProgram",
]


@dataclass(frozen=True)
class PlantedArguments(TextGenerationArguments):
    """The arguments of :class:`PlantedEnv`, which documents them."""

    tokenizer: Annotated[
        str | Path | PreTrainedTokenizerBase,
        '`"planted"`, or another tokenizer with the vocabulary of the program.',
    ] = "planted"
    reward_model: Annotated[
        str | Path | PreTrainedModel | RewardModel,
        'Where the read-outs come from: `"planted"`, a local folder, a hub id, a loaded sequence '
        "classifier, or a :class:`textgym.models.RewardModel`. It must share the tokenizer.",
    ] = "planted"
    prompts: Annotated[
        str | Path | Sequence[str] | PromptSource | Any,
        "Where episodes start, in words of the vocabulary; see "
        ":func:`textgym.prompts.load_prompts`.",
    ] = PROMPTS
    _: KW_ONLY
    min_new_tokens: int = 8
    max_new_tokens: int = 8


@dataclass(frozen=True)
class PlantedVectorArguments(PlantedArguments, VectorArguments):
    """The arguments of :class:`PlantedVectorEnv`, which documents them."""


@dataclass(frozen=True)
class ScoredByProgram(ScoredCompletions):
    """Completions whose ``score`` is the program's, with the reward model's beside it.

    Attributes:
        reward_model_score: What the reward model predicts, shape (batch,), float32.
    """

    reward_model_score: Tensor = field(default_factory=lambda: torch.empty(0))


class PlantedTask(TextGenerationTask):
    """Text generation scored by the program of :mod:`textgym.planted`.

    The reward model supplies only the read-outs.

    Args:
        arguments: The arguments of the environment.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or the tokenizer of the policy or of
            the reward model has another vocabulary than the program.
    """

    def __init__(self, arguments: TextGenerationArguments) -> None:
        super().__init__(arguments)
        if isinstance(self.reward_model, RewardFunction):
            raise InvalidArgumentError(
                "reward_model",
                arguments.reward_model,
                "the program scores here, and a function has no read-outs; pass a reward model",
            )
        if self.tokenizer.get_vocab() != TOKEN_IDS:
            raise InvalidArgumentError(
                "tokenizer",
                getattr(self.tokenizer, "name_or_path", arguments.tokenizer),
                'the program knows only its own tokens; pass "planted"',
            )
        if isinstance(self.reward_model, TextRewardModel):
            raise InvalidArgumentError(
                "reward_model",
                arguments.reward_model,
                "it has another tokenizer or a template, and must read the program's tokens as "
                'they are; pass "planted"',
            )

    def score(self, completions: Completions, readouts: frozenset[Readout]) -> ScoredByProgram:
        """Have the reward model read finished completions, and the program score them."""
        scored = super().score(completions, readouts)
        texts = [prompt + ids for prompt, ids in zip(*token_lists(completions), strict=True)]
        values: dict[str, Any] = {one.name: getattr(scored, one.name) for one in fields(scored)}
        values["score"] = scored.score.new_tensor([score(text) for text in texts])
        return ScoredByProgram(**values, reward_model_score=scored.score)

    def final_infos(
        self, completions: Completions, budgets: np.ndarray, scored: ScoredCompletions
    ) -> dict[str, np.ndarray]:
        """The infos of the base class, and what the program knows; see :class:`PlantedEnv`."""
        assert isinstance(scored, ScoredByProgram)
        infos = super().final_infos(completions, budgets, scored)
        prompts, generated = token_lists(completions)
        # The same number of columns in every batch, so that vector environments can stack them.
        infos["contributions"] = np.zeros((len(prompts), self.max_new_tokens), dtype=np.float32)
        for row, prompt, ids in zip(infos["contributions"], prompts, generated, strict=True):
            row[: len(ids)] = contributions([*prompt, *ids])[len(prompt) :]
        infos["optimal_score"] = np.array(
            [optimal_score(*one) for one in zip(prompts, budgets.tolist(), strict=True)]
        )
        infos["reward_model_score"] = np.array(scored.reward_model_score.tolist())
        return infos


@document_arguments
class PlantedEnv(TextGenerationEnv):
    r"""Write a text that a known program scores, so that every token's true credit is known.

    ## Description

    A :class:`textgym.envs.TextGenerationEnv` over a vocabulary of 17 tokens. The score does not
    come from a reward model but from a program, :mod:`textgym.planted`. It counts sentiment words,
    and what *very*, *not* and *however* do to them. So the best score is known exactly, and so is
    what each token contributed: any credit can be compared with the truth. A small reward model,
    trained on the program's scores, supplies only the read-outs (attention, prefix scores,
    gradients) for credit assigners and potentials.

    The program's rules: *wonderful*, *good*, *bad* and *awful* are worth +2, +1, -1 and -2, each
    only the first time. *very* doubles the sentiment word that follows, and *not* flips it, with
    nothing but modifiers in between. The first *however* after a phrase that counted takes the
    first such phrase back. Everything else is neutral: *the*, *film*, *plot*, *was*, *and*, *it*,
    *so*, and the special tokens.

    ## Observation Space

    As in :class:`textgym.envs.TextGenerationEnv`: `input_ids` (int64) and `attention_mask` (int8),
    both of shape `(max_length,)`; 15 with the default prompts.

    ## Action Space

    `Discrete(17)`: the next token, with ids as in :data:`textgym.planted.VOCABULARY`. EOS (2) is
    illegal before `min_new_tokens` tokens, so by default it is never legal. If an agent takes it
    anyway, the episode ends and is scored.

    ## Rewards

    0 until the episode ends, then the program's score of prompt and completion together: a whole
    number from -12 to 12. The prompts score 0. With the default 8 tokens the best score is 10, for
    example *very wonderful very good not very awful* and one more word. Without *not* it is 6.

    ## Starting State

    One of five neutral prompts, such as *the film was*, and a budget of 8 new tokens. `reset` has
    the options of :class:`textgym.envs.TextGenerationEnv`.

    ## Episode End

    `terminated` when the budget is used up or EOS is taken. `truncated` is for limits from outside.

    ## Information

    That of :class:`textgym.envs.TextGenerationEnv`, and at the end of an episode:

    | key                  | type                        | meaning                              |
    |----------------------|-----------------------------|--------------------------------------|
    | `contributions`      | float32 (max_new_tokens,)   | what each generated token really     |
    |                      |                             | contributed, 0 after the last        |
    | `optimal_score`      | float                       | best score for this prompt and budget|
    | `reward_model_score` | float                       | what the reward model predicts       |

    The contributions sum to the score; with your own prompts, to the score minus what the prompt
    contributes. A sentiment word that counts gets its plain value. *very* gets what it adds to that
    value, *not* what it changes about the result, *however* minus what it takes back. All other
    tokens get 0.

    ## Arguments

    ```python
    import gymnasium as gym
    import textgym

    env = gym.make("ABC-RLHF-Planted-v0", max_new_tokens=10)
    ```

    ## Version History

    * v0: Initial version.

    Args:
        arguments: The fields of :class:`textgym.envs.planted.PlantedArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    task_class = PlantedTask

    @init_takes(PlantedArguments)
    def __init__(self, arguments: PlantedArguments) -> None:
        super().__init__(**vars(arguments))


@document_arguments
class PlantedVectorEnv(TextGenerationVectorEnv):
    """Several :class:`textgym.envs.PlantedEnv` in one, with one reward-model call per step.

    `gym.make_vec("ABC-RLHF-Planted-v0", num_envs=64)` returns it. Autoreset modes and seeds are
    those of :class:`textgym.envs.TextGenerationVectorEnv`. `infos["contributions"]` has the shape
    (num_envs, max_new_tokens).

    Args:
        arguments: The fields of :class:`textgym.envs.planted.PlantedVectorArguments`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    task_class = PlantedTask

    @init_takes(PlantedVectorArguments)
    def __init__(self, arguments: PlantedVectorArguments) -> None:
        super().__init__(**vars(arguments))
