"""Prefix scores of growing texts, for reward models and functions that read text."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models.bridge.reward_function import RewardFunction
from textgym.models.bridge.spans import TextRow, text_rows
from textgym.models.bridge.text_reward_model import TextRewardModel
from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.incremental import IncrementalRewardModel
from textgym.models.readouts import PrefixScores, Readout

__all__ = ["IncrementalTextReader"]


_MAX_CHANGED = 8
"""A token of the policy changes few tokens of the reward model. Where it changes more, or where an
episode begins, one pass over the whole text is quicker than a pass for each token."""

_MOST_PROMPTS = 4096
"""How many prompts keep their score, or as many as there are rows, if that is more."""


class IncrementalTextReader:
    """Scores texts that grow by the policy's tokens, with a reward that reads text.

    A new token of the policy can change the reward model's earlier tokens: "act" and "ing" may be
    one token there. So the text so far is encoded anew at every step. A decoder keeps the keys and
    values of what it has read, and reads on from the first of its tokens that changed. An encoder
    reads the text so far, and a function is called with it.

    Args:
        reward_model: The reward model or function.
    """

    def __init__(self, reward_model: TextRewardModel | RewardFunction) -> None:
        if not isinstance(reward_model, TextRewardModel | RewardFunction):
            raise InvalidArgumentError(
                "reward_model", reward_model, "must be a TextRewardModel or a RewardFunction"
            )
        self.reward_model = reward_model
        self._reader: IncrementalRewardModel | None = None
        if isinstance(reward_model, TextRewardModel):
            inner = reward_model.reward_model
            if IncrementalRewardModel.can_read(inner, [PrefixScores()]):
                # What is not a plain decoder reads the whole text.
                with contextlib.suppress(InvalidArgumentError):
                    self._reader = IncrementalRewardModel(inner, [PrefixScores()], _MAX_CHANGED)
        self._prompt_scores: dict[str, float] = {}

    @staticmethod
    def can_read(reward_model: object, readouts: Collection[Readout]) -> bool:
        """Whether this class can read what is asked."""
        known = type(reward_model) in (TextRewardModel, RewardFunction)
        return known and set(readouts) <= {PrefixScores()}

    @property
    def is_incremental(self) -> bool:
        """Whether keys and values are kept."""
        return self._reader is not None

    def read(self, completions: Completions, rows: Tensor | None = None) -> ScoredCompletions:
        """Score a batch whose texts may have grown since the last call.

        Args:
            completions: All rows of the batch, in the policy's tokens.
            rows: The rows requested, shape (batch,), bool; None for all. Other rows are not read.

        Returns:
            The requested rows. Of the prefix scores, those at the end of the prompt and at the
            newest token are filled in; the others are 0.
        """
        if rows is None:
            rows = torch.ones(len(completions), dtype=torch.bool)
        requested = rows.cpu().nonzero()[:, 0]
        chosen = completions.to(self.reward_model.device).select(
            requested.to(self.reward_model.device)
        )
        texts = text_rows(
            self.reward_model.tokenizer_of_policy,
            chosen,
            every_token=False,
            prompt_texts=self.reward_model.prompt_texts,
        )
        newest = self._score(texts, requested.tolist(), len(completions))
        self._score_prompts([text.prompt for text in texts], len(completions))
        prefix_scores = torch.zeros_like(chosen.input_ids, dtype=torch.float32)
        for number, text in enumerate(texts):
            if text.num_prompt_tokens:
                column = int(text.columns[text.num_prompt_tokens - 1])
                prefix_scores[number, column] = self._prompt_scores[text.prompt]
            prefix_scores[number, int(text.columns[-1])] = newest[number]
        return chosen.with_score(newest, {PrefixScores(): prefix_scores})

    def _score_prompts(self, prompts: Sequence[str], batch: int) -> None:
        """Score prompts that are new, and forget those that were read the longest time ago."""
        unknown = sorted(set(prompts).difference(self._prompt_scores))
        if unknown:
            scores = self.reward_model.score_texts(unknown, [""] * len(unknown))
            self._prompt_scores |= dict(zip(unknown, scores.tolist(), strict=True))
        for prompt in prompts:  # A dict is in order of insertion.
            self._prompt_scores[prompt] = self._prompt_scores.pop(prompt)
        for _ in range(len(self._prompt_scores) - max(_MOST_PROMPTS, batch)):
            del self._prompt_scores[next(iter(self._prompt_scores))]

    def _score(self, texts: Sequence[TextRow], requested: Sequence[int], batch: int) -> Tensor:
        prompts = [text.prompt for text in texts]
        completions = [text.completion for text in texts]
        if self._reader is None or isinstance(self.reward_model, RewardFunction):
            return self.reward_model.score_texts(prompts, completions)
        encoded = self.reward_model.encode(
            [
                self.reward_model.template.fill(*pair)
                for pair in zip(prompts, completions, strict=True)
            ]
        )
        ids: list[list[int]] = [[] for _ in range(batch)]
        wanted = torch.zeros(batch, dtype=torch.bool)
        for row, one in zip(requested, encoded, strict=True):
            ids[row] = one.ids
            wanted[row] = bool(one.ids)
        scores = torch.zeros(batch, device=self.reward_model.device)
        if wanted.any():
            everything = Completions.from_lists([[] for _ in ids], ids)
            scores[wanted] = self._reader.read(everything, wanted).score
        return scores[list(requested)]
