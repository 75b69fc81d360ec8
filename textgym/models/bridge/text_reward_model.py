"""A reward model whose tokenizer is not the policy's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from textgym.errors import InvalidArgumentError
from textgym.models.bridge.spans import TextRow, overlap, prefix_texts, text_rows
from textgym.models.bridge.template import TextTemplate
from textgym.models.checks import check_prompt_texts, check_tokenizer
from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.readouts import AttentionRow, GradientTimesInput, PrefixScores, Readout
from textgym.models.reward_model import RewardModel

__all__ = ["TextCompletions", "TextRewardModel"]

_PER_TOKEN = (AttentionRow, GradientTimesInput)
"""Read-outs with one value per token, which can be split among other tokens."""


@dataclass(frozen=True)
class TextCompletions(ScoredCompletions):
    """Scored completions in the policy's tokens, read through the reward model's own.

    Attributes:
        source: The same texts in the reward model's tokens, with all read-outs.
        alignment: Which part of each of the reward model's tokens lies in each token of the policy,
            by characters, float32, shape (batch, num_tokens, num_source_tokens). Columns of special
            tokens and of a template sum to 0.
    """

    source: ScoredCompletions | None = None
    alignment: Tensor | None = None

    def __getitem__(self, readout: Readout) -> Tensor:
        if readout not in self.readouts and self.source and readout in self.source.readouts:
            raise InvalidArgumentError(
                "readout",
                readout,
                "the reward model has a tokenizer of its own, and this read-out is no sum over "
                "tokens, so it exists in the reward model's tokens only: see scored.source",
            )
        return super().__getitem__(readout)

    def by_reward_model_token(self, compute: Callable[[ScoredCompletions], Tensor]) -> Tensor:
        """Compute in the reward model's tokens; see the base class."""
        assert self.source is not None
        return self.to_policy(compute(self.source))

    def to_policy(self, values: Tensor) -> Tensor:
        """Split values of the reward model's tokens among the policy's, by characters.

        Args:
            values: Shape (batch, num_source_tokens).

        Returns:
            Shape (batch, num_tokens). The sum is that of the values, less :meth:`outside`.
        """
        assert self.alignment is not None
        return torch.einsum("bps,bs->bp", self.alignment, values.to(self.alignment.dtype))

    def outside(self, values: Tensor) -> Tensor:
        """What lies on special tokens and on the template, and so on no token of the policy.

        Args:
            values: Shape (batch, num_source_tokens).

        Returns:
            Shape (batch,).
        """
        assert self.alignment is not None
        return (values * (1.0 - self.alignment.sum(1))).sum(1)


class _Encoded(NamedTuple):
    """A text in the reward model's tokens: ids, and the characters of each, (num_tokens, 2)."""

    ids: list[int]
    offsets: NDArray[np.int64]


class TextRewardModel:
    """Reads completions in the policy's tokens with a reward model that has another tokenizer.

    The text is rebuilt from the policy's tokens, put into the reward model's template, and encoded
    with its tokenizer and special tokens. The values of a reward model's token are split among the
    policy's tokens that it covers, in proportion to the characters. What lies on special tokens and
    on the template belongs to no token; :meth:`TextCompletions.outside` tells how much it is.

    Prefix scores are scores of texts: the text up to a token of the policy is encoded anew. A
    decoder's prefix scores come from the pass that scores where the encoded prefix is a prefix of
    the encoded text; the others, and all of an encoder, are read as texts of their own. They are 0
    before the end of the prompt.

    Environments make one where the reward model's vocabulary is not the policy's.

    Args:
        reward_model: The reward model, with its tokenizer.
        tokenizer: The policy's tokenizer.
        template: See :meth:`textgym.models.bridge.TextTemplate.of`; None for the reward model's.
        prompt_texts: By the tokens of a prompt, what the reward model reads instead of the decoded
            tokens; see :class:`textgym.prompts.PromptSource`.

    Raises:
        InvalidArgumentError: If the template cannot be used, or the reward model's tokenizer does
            not say which characters its tokens cover (a slow tokenizer).
    """

    is_causal = False
    """Whether prefix scores and attention of a token depend on the text up to it alone."""

    def __init__(
        self,
        reward_model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | TextTemplate | None = None,
        prompt_texts: Mapping[tuple[int, ...], str] | None = None,
    ) -> None:
        if not isinstance(reward_model, RewardModel):
            raise InvalidArgumentError("reward_model", reward_model, "must be a RewardModel")
        check_tokenizer("tokenizer", tokenizer)
        check_prompt_texts(prompt_texts)
        self.prompt_texts = prompt_texts or {}
        self.reward_model = reward_model
        self.tokenizer_of_policy = tokenizer
        self.tokenizer = reward_model.tokenizer
        if not getattr(self.tokenizer, "is_fast", False):
            raise InvalidArgumentError(
                "reward_model",
                type(self.tokenizer).__name__,
                "its tokenizer differs from the policy's and does not tell which characters a "
                "token covers; pass RewardModel(model, tokenizer) with a fast tokenizer",
            )
        template = getattr(reward_model, "template", None) if template is None else template
        self.template = TextTemplate.of(template, self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.reward_model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights. Scores are always float32."""
        return self.reward_model.dtype

    @property
    def attention_profile(self) -> list[float] | None:
        """See :class:`RewardModel`."""
        return self.reward_model.attention_profile

    @property
    def score_mean(self) -> float:
        """See :class:`RewardModel`."""
        return self.reward_model.score_mean

    @property
    def score_std(self) -> float:
        """See :class:`RewardModel`."""
        return self.reward_model.score_std

    def check_readouts(self, readouts: Collection[Readout]) -> None:
        """See :meth:`RewardModel.check_readouts`."""
        self.reward_model.check_readouts(readouts)

    def read(self, completions: Completions, readouts: Collection[Readout] = ()) -> TextCompletions:
        """Score a batch in the policy's tokens; see :meth:`RewardModel.read`.

        Args:
            completions: The texts, in the policy's tokens.
            readouts: What to read out. Attention maps and pooling stay in the reward model's
                tokens, ``scored.source``.

        Returns:
            The batch with scores and read-outs, on the reward model's device.

        Raises:
            InvalidArgumentError: If the model does not support a read-out, or a text is empty, or
                too long for it.
        """
        self.check_readouts(readouts)
        completions = completions.to(self.device)
        rows = text_rows(self.tokenizer_of_policy, completions, prompt_texts=self.prompt_texts)
        encoded = self.encode([self.template.fill(row.prompt, row.completion) for row in rows])
        for row, one in zip(rows, encoded, strict=True):
            if not one.ids:
                raise InvalidArgumentError(
                    "completions",
                    row.tokens.text,
                    "it has no text, so the reward model has nothing to score",
                )
        aligned = [self._align(row, one.offsets) for row, one in zip(rows, encoded, strict=True)]
        wanted = set(readouts)
        if not self.reward_model.is_causal:
            wanted.discard(PrefixScores())
        source = self.reward_model.read(self._batch(rows, encoded, aligned), wanted)
        alignment = torch.zeros(*completions.input_ids.shape, source.input_ids.shape[1])
        for number, (row, part) in enumerate(zip(rows, aligned, strict=True)):
            columns = torch.from_numpy(row.columns)
            alignment[number, columns, : part.shape[1]] = torch.from_numpy(part).float()
        scored = TextCompletions(
            completions.input_ids,
            completions.attention_mask,
            completions.completion_mask,
            score=source.score,
            reward_model=self,
            source=source,
            alignment=alignment.to(self.device),
        )
        values: dict[Readout, Tensor] = {
            readout: scored.to_policy(source[readout])
            for readout in readouts
            if isinstance(readout, _PER_TOKEN)
        }
        if PrefixScores() in readouts:
            values[PrefixScores()] = self._prefix_scores(rows, encoded, scored)
        return replace(scored, readouts=values)

    def encode(self, texts: Sequence[str]) -> list[_Encoded]:
        """Encode texts that are in the template already.

        Raises:
            InvalidArgumentError: If a text is too long for the reward model, or cannot be encoded
                by its tokenizer.
        """
        literal = self.template.is_empty  # Then "[SEP]" in a text is five characters.
        try:
            encoded = self.tokenizer(
                list(texts),
                add_special_tokens=not self.template.has_special_tokens,
                return_offsets_mapping=True,
                split_special_tokens=literal,
                verbose=False,
            )
        except Exception as error:  # The tokenizers raise nothing narrower.
            raise InvalidArgumentError(
                "reward_model",
                type(self.tokenizer).__name__,
                f"its tokenizer cannot encode the text ({error}); pass a reward model whose "
                "tokenizer has bytes or a token for the unknown",
            ) from error
        found = [
            _Encoded(ids, np.array(offsets, dtype=np.int64).reshape(-1, 2))
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        limit = self.reward_model.max_length
        for text, one in zip(texts, found, strict=True):
            if limit is not None and len(one.ids) > limit:
                raise InvalidArgumentError(
                    "completions",
                    text,
                    f"it has {len(one.ids)} of the reward model's tokens, which takes {limit}; "
                    "use fewer new tokens or shorter prompts",
                )
        return found

    def score_texts(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Scores of texts, float32, shape (num_texts,).

        Args:
            prompts: Their prompts.
            completions: Their completions, which may be empty. A text without tokens counts 0.
        """
        encoded = self.encode(list(map(self.template.fill, prompts, completions)))
        return self.reward_model.score_ids([one.ids for one in encoded])

    def _align(self, row: TextRow, offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        """Part of each of the reward model's tokens in each of the policy's."""
        number, bounds = row.num_prompt_tokens, row.tokens.bounds
        starts, ends = bounds[:-1].copy(), bounds[1:].copy()
        before = len(self.template.before)
        for edges in (starts, ends):
            edges[number:] += before + len(row.prompt) + len(self.template.between) - row.prompt_end
            if row.own_prompt is None:
                edges[:number] += before
            else:  # The prompt's tokens stand for a text that the reward model does not read.
                edges[:number] = 0.0
        return overlap(starts, ends, offsets)

    def _batch(
        self,
        rows: Sequence[TextRow],
        encoded: Sequence[_Encoded],
        aligned: Sequence[NDArray[np.float64]],
    ) -> Completions:
        """The texts in the reward model's tokens.

        A token that has a part in both prompt and completion belongs to the completion.
        """
        width = max(len(one.ids) for one in encoded)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        attention_mask, completion_mask = torch.zeros(2, len(rows), width, dtype=torch.bool)
        for number, (row, one, part) in enumerate(zip(rows, encoded, aligned, strict=True)):
            ids[number, : len(one.ids)] = torch.tensor(one.ids)
            attention_mask[number, : len(one.ids)] = True
            generated = torch.from_numpy(part[row.num_prompt_tokens :].sum(0) > 0)
            completion_mask[number, : len(one.ids)] = generated
        return Completions(ids, attention_mask, completion_mask)

    def _prefix_scores(
        self, rows: Sequence[TextRow], encoded: Sequence[_Encoded], scored: TextCompletions
    ) -> Tensor:
        """The score of the text up to each token of the policy, from the prompt's end on."""
        places, pairs = prefix_texts(rows)
        texts = [self.template.fill(*pair) for pair in pairs]
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        prefixes = self.encode(list(distinct))
        values = torch.zeros_like(scored.input_ids, dtype=torch.float32)
        assert scored.source is not None
        causal = self.reward_model.is_causal
        free = scored.source[PrefixScores()] if causal else None
        todo: dict[int, list[tuple[int, int]]] = {}
        for (number, column), text in zip(places, texts, strict=True):
            ids, whole = prefixes[distinct[text]].ids, encoded[number].ids
            if ids == whole:
                values[number, column] = scored.score[number]
            elif free is not None and ids and ids == whole[: len(ids)]:
                values[number, column] = free[number, len(ids) - 1]
            else:
                todo.setdefault(distinct[text], []).append((number, column))
        if todo:
            scores = self.reward_model.score_ids([prefixes[text].ids for text in todo])
            for score, owners in zip(scores, todo.values(), strict=True):
                for number, column in owners:
                    values[number, column] = score
        return values
