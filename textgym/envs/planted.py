"""The planted task: text generation in which the true contribution of every token is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.envs.task import TextGenerationTask
from textgym.envs.text_generation import TextGenerationEnv
from textgym.envs.text_generation_vector import TextGenerationVectorEnv
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel, ScoredCompletions
from textgym.models.readouts import Readout
from textgym.planted import PROMPTS, TOKEN_IDS, contributions, optimal_score, score
from textgym.prompts import PromptSource

__all__ = ["PlantedEnv", "PlantedTask", "PlantedVectorEnv", "ScoredByProgram"]


@dataclass(frozen=True)
class ScoredByProgram(ScoredCompletions):
    """Completions whose ``score`` is the program's, with the reward model's beside it.

    Attributes:
        reward_model_score: What the reward model predicts, shape (batch,), float32.
    """

    reward_model_score: Tensor = field(default_factory=lambda: torch.empty(0))


class PlantedTask(TextGenerationTask):
    """Text generation scored by the program of :mod:`textgym.planted`.

    The reward model supplies the read-outs alone. Arguments are those of
    :class:`textgym.envs.task.TextGenerationTask`.

    Raises:
        InvalidArgumentError: If an argument cannot be used, or the tokenizer has another vocabulary
            than the program.
    """

    def __init__(
        self, tokenizer: str | Path | PreTrainedTokenizerBase, *arguments: Any, **keywords: Any
    ) -> None:
        super().__init__(tokenizer, *arguments, **keywords)
        if self.tokenizer.get_vocab() != TOKEN_IDS:
            raise InvalidArgumentError(
                "tokenizer",
                getattr(self.tokenizer, "name_or_path", tokenizer),
                'the program knows its own tokens only; pass "planted"',
            )

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        readouts: frozenset[Readout],
    ) -> ScoredByProgram:
        """Have the reward model read finished completions, and the program score them."""
        scored = super().score(prompt_ids, completion_ids, readouts)
        values: dict[str, Any] = {one.name: getattr(scored, one.name) for one in fields(scored)}
        values["score"] = scored.score.new_tensor(
            [
                score([*prompt, *completion])
                for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
            ]
        )
        return ScoredByProgram(**values, reward_model_score=scored.score)

    def final_infos(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        budgets: Sequence[int],
        scored: ScoredCompletions,
    ) -> list[dict[str, Any]]:
        """The infos of the base class, and what the program knows; see :class:`PlantedEnv`."""
        assert isinstance(scored, ScoredByProgram)
        infos = super().final_infos(prompt_ids, completion_ids, budgets, scored)
        for info, prompt, completion, budget, predicted in zip(
            infos,
            prompt_ids,
            completion_ids,
            budgets,
            scored.reward_model_score.tolist(),
            strict=True,
        ):
            # Of one length whatever the episode's, so that vector environments can stack them.
            padded = np.zeros(self.max_new_tokens, dtype=np.float32)
            padded[: len(completion)] = contributions([*prompt, *completion])[len(prompt) :]
            info["contributions"] = padded
            info["optimal_score"] = optimal_score(prompt, budget)
            info["reward_model_score"] = predicted
        return infos


class PlantedEnv(TextGenerationEnv):
    r"""Write a text that a known program scores: the truth about every token's credit is at hand.

    ## Description

    A :class:`textgym.envs.TextGenerationEnv` over a vocabulary of 17 tokens. The score is not a
    reward model's but that of a program, :mod:`textgym.planted`, which counts sentiment words and
    what *very*, *not* and *however* do to them. So the best score is known exactly, and so is what
    each token contributed, against which any credit can be held. A small reward model that was
    trained on the program's scores supplies the read-outs (attention, prefix scores, gradients)
    that credit assigners and potentials work with; it does not pay.

    The program's rules: *wonderful*, *good*, *bad* and *awful* are worth +2, +1, -1 and -2, each at
    its first occurrence only. *very* doubles and *not* flips the sentiment word that follows, with
    nothing but modifiers between. The first *however* behind a phrase that counted takes the first
    one back. Everything else is neutral: *the*, *film*, *plot*, *was*, *and*, *it*, *so*, and the
    special tokens.

    ## Observation Space

    As in :class:`textgym.envs.TextGenerationEnv`: `input_ids` (int64) and `attention_mask` (int8),
    both of shape `(max_length,)`; 15 with the default prompts.

    ## Action Space

    `Discrete(17)`: the next token, with ids as in :data:`textgym.planted.VOCABULARY`. EOS (2) is
    illegal before `min_new_tokens` tokens, so it never is legal by default; an agent that takes it
    all the same ends the episode, and is scored.

    ## Rewards

    0 until the episode ends, then the program's score of prompt and completion together: a whole
    number from -12 to 12. The prompts score 0. With the default 8 tokens the best completions
    score 10, such as *very wonderful very good not very awful* and one more word; without *not*
    the best score is 6.

    ## Starting State

    One of five neutral prompts, such as *the film was*, and a budget of 8 new tokens. Options of
    `reset` are those of :class:`textgym.envs.TextGenerationEnv`.

    ## Episode End

    `terminated` when the budget is used up or EOS is taken; `truncated` is left to limits from
    outside.

    ## Information

    All of :class:`textgym.envs.TextGenerationEnv`, and at the end of an episode:

    | key                  | type                        | meaning                              |
    |----------------------|-----------------------------|--------------------------------------|
    | `contributions`      | float32 (max_new_tokens,)   | what each generated token really     |
    |                      |                             | contributed, 0 behind the last       |
    | `optimal_score`      | float                       | best score for this prompt and budget|
    | `reward_model_score` | float                       | what the reward model predicts       |

    The contributions sum to the score, except for what a prompt of one's own contributes. A
    sentiment word that counts gets its plain value, *very* what it adds to it, *not* what it
    changes about the result, *however* minus what it takes back; all others 0.

    ## Arguments

    ```python
    import gymnasium as gym
    import textgym

    env = gym.make("ABC-RLHF-Planted-v0", max_new_tokens=10)
    ```

    ## Version History

    * v0: Initial version.

    Args:
        tokenizer: `"planted"`, or another tokenizer with the vocabulary of the program.
        reward_model: `"planted"`, a local folder, a hub id, a loaded sequence classifier, or a
            :class:`textgym.models.RewardModel`, for the read-outs. It must share the tokenizer.
        prompts: See :func:`textgym.prompts.load_prompts`; of words of the vocabulary.
        prompt_column: Column of the prompts in a dataset or file.
        min_new_tokens: Smallest budget; EOS before that many tokens is illegal.
        max_new_tokens: Largest budget.
        device: Where the reward model runs, if it is loaded by name.
        dtype: Its dtype, if it is loaded by name; None for float32.
        action_mask_in_info: Whether `info` holds the action mask.
        render_mode: `"ansi"`, `"human"` or None; see :class:`textgym.envs.TextGenerationEnv`.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    task_class = PlantedTask

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase = "planted",
        reward_model: str | Path | PreTrainedModel | RewardModel = "planted",
        prompts: str | Path | Sequence[str] | PromptSource | Any = PROMPTS,
        *,
        prompt_column: str | None = None,
        min_new_tokens: int = 8,
        max_new_tokens: int = 8,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        action_mask_in_info: bool = False,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            reward_model,
            prompts,
            prompt_column=prompt_column,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
            action_mask_in_info=action_mask_in_info,
            render_mode=render_mode,
        )


class PlantedVectorEnv(TextGenerationVectorEnv):
    """Several :class:`textgym.envs.PlantedEnv` in one, with one reward-model call per step.

    `gym.make_vec("ABC-RLHF-Planted-v0", num_envs=64)` returns it. It relates to the single
    environment as :class:`textgym.envs.TextGenerationVectorEnv`, which tells about autoreset modes
    and seeds, relates to its own. `infos["contributions"]` has the shape
    (num_envs, max_new_tokens).

    Args:
        num_envs: Number of rows.
        tokenizer: See :class:`textgym.envs.PlantedEnv`, as for all but the last.
        reward_model: As there.
        prompts: As there.
        prompt_column: As there.
        min_new_tokens: As there.
        max_new_tokens: As there.
        device: As there.
        dtype: As there.
        action_mask_in_info: As there.
        render_mode: `"ansi"` or None.
        autoreset_mode: What follows the end of an episode.

    Raises:
        InvalidArgumentError: If an argument cannot be used; the message names the remedy.
    """

    task_class = PlantedTask

    def __init__(
        self,
        num_envs: int = 1,
        tokenizer: str | Path | PreTrainedTokenizerBase = "planted",
        reward_model: str | Path | PreTrainedModel | RewardModel = "planted",
        prompts: str | Path | Sequence[str] | PromptSource | Any = PROMPTS,
        *,
        prompt_column: str | None = None,
        min_new_tokens: int = 8,
        max_new_tokens: int = 8,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        action_mask_in_info: bool = False,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        super().__init__(
            num_envs,
            tokenizer,
            reward_model,
            prompts,
            prompt_column=prompt_column,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
            action_mask_in_info=action_mask_in_info,
            render_mode=render_mode,
            autoreset_mode=autoreset_mode,
        )
