"""Any function of prompt and completion as the reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from textgym.checks import check_takes
from textgym.errors import InvalidArgumentError
from textgym.models.bridge.spans import prefix_texts, text_rows
from textgym.models.checks import check_prompt_texts, check_tokenizer
from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.readouts import PrefixScores, Readout

__all__ = ["RewardFunction"]


class RewardFunction:
    """A reward that a function of your own computes from text: a rule, a pipeline, a judge.

    The function gets lists of texts and returns a number for each, ``function(prompts=[...],
    completions=[...]) -> [...]``: the form of TRL's reward functions. Scores are used as they are.

    Without a model there is no attention and no gradient. Sparse reward, uniform and random credit,
    occlusion and Shapley values work, since they need scores alone; so do prefix scores, with one
    call for all prefixes of a batch.

    Args:
        function: The function.
        tokenizer: The policy's tokenizer.
        prompt_texts: See :class:`TextRewardModel`.

    Raises:
        InvalidArgumentError: If ``function`` is not a function of ``prompts`` and ``completions``.

    Example:
        >>> from textgym.models import Completions, load_tokenizer
        >>> def praise(prompts, completions):
        ...     return [completion.count("good") for completion in completions]
        >>> tokenizer = load_tokenizer("embedded")
        >>> ids = [tokenizer(text)["input_ids"] for text in ("The film", " is good, so good")]
        >>> completions = Completions.from_lists([ids[0]], [ids[1][1:]])
        >>> RewardFunction(praise, tokenizer).read(completions).score
        tensor([2.])
    """

    is_causal = False
    attention_profile: list[float] | None = None
    device = torch.device("cpu")
    dtype = torch.float32
    max_length: int | None = None

    def __init__(
        self,
        function: Callable[..., Sequence[float]],
        tokenizer: PreTrainedTokenizerBase,
        prompt_texts: Mapping[tuple[int, ...], str] | None = None,
    ) -> None:
        if not callable(function) or inspect.isclass(function):
            raise InvalidArgumentError("function", function, "pass a function")
        remedy = "a reward function takes prompts= and completions=, lists of texts"
        check_takes("reward_model", function, remedy, prompts=[], completions=[])
        check_tokenizer("tokenizer", tokenizer)
        check_prompt_texts(prompt_texts)
        self.prompt_texts = prompt_texts or {}
        self.function = function
        self.tokenizer_of_policy = tokenizer

    def check_readouts(self, readouts: Collection[Readout]) -> None:
        """Check that the score is enough.

        Raises:
            InvalidArgumentError: If a read-out needs a model.
        """
        for readout in readouts:
            if readout != PrefixScores():
                raise InvalidArgumentError(
                    "reward_model",
                    getattr(self.function, "__name__", type(self.function).__name__),
                    f"a reward function has scores only, and {type(readout).__name__} needs a "
                    "model; use sparse, uniform, occlusion, shapley or prefix-score credit, or a "
                    "reward model",
                )

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Score a batch; see :meth:`textgym.models.RewardModel.read`.

        Raises:
            InvalidArgumentError: If the function returns something else than a finite number for
                each text, or a read-out needs a model.
        """
        self.check_readouts(readouts)
        completions = completions.to(self.device)
        wants_prefixes = PrefixScores() in readouts
        rows = text_rows(self.tokenizer_of_policy, completions, wants_prefixes, self.prompt_texts)
        scores = self.score_texts([row.prompt for row in rows], [row.completion for row in rows])
        values: dict[Readout, Any] = {}
        if wants_prefixes:
            places, texts = prefix_texts(rows)
            distinct = list(dict.fromkeys(texts))
            found = dict(zip(distinct, self.score_texts(*zip(*distinct, strict=True)), strict=True))
            prefix_scores = torch.zeros_like(completions.input_ids, dtype=torch.float32)
            for place, text in zip(places, texts, strict=True):
                prefix_scores[place] = found[text]
            values[PrefixScores()] = prefix_scores
        return completions.with_score(scores, values, reward_model=self)  # type: ignore[arg-type]

    def score_texts(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Call the function, and check what it returns; float32, shape (num_texts,)."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        try:
            returned = self.function(prompts=list(prompts), completions=list(completions))
            scores = [float(score) for score in returned]
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "reward_model",
                name,
                "a reward function takes prompts= and completions=, lists of texts, and returns a "
                f"number for each ({error})",
            ) from error
        if len(scores) != len(prompts):
            raise InvalidArgumentError(
                "reward_model", name, f"it returned {len(scores)} scores for {len(prompts)} texts"
            )
        for score, prompt, completion in zip(scores, prompts, completions, strict=True):
            if not math.isfinite(score):
                raise InvalidArgumentError(
                    "reward_model",
                    name,
                    f"it returned {score} for the prompt {prompt!r} with the completion "
                    f"{completion!r}; return finite numbers",
                )
        return torch.tensor(scores, dtype=torch.float32)
