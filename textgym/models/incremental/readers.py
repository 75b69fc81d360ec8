"""What is read from texts that grow: a language model's next token, a reward model's read-outs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from textgym.errors import InvalidArgumentError
from textgym.models.completions import Completions, LeftAligned, ScoredCompletions
from textgym.models.incremental.decoder import IncrementalDecoder, Pass, Text
from textgym.models.readouts import AttentionMap, PrefixScores, Readout, layer_indices
from textgym.models.recorder import RecordedAttention
from textgym.models.reward_model import RewardModel

__all__ = ["IncrementalLanguageModel", "IncrementalRewardModel", "NextToken"]


class NextToken(NamedTuple):
    """What a language model says about the end of each text.

    Attributes:
        hidden: Last hidden state of the last token, float32, shape (batch, hidden_size).
        logits: Logits of the token after it, float32, shape (batch, vocab_size).
    """

    hidden: Tensor
    logits: Tensor


class IncrementalLanguageModel(IncrementalDecoder):
    """Reads growing texts with a causal language model.

    Args:
        model: The language model; it is put in evaluation mode, and must stay as it is.

    Raises:
        InvalidArgumentError: If it cannot be read token by token.

    Example:
        >>> from textgym.models import load_language_model
        >>> reader = IncrementalLanguageModel(load_language_model("embedded"))
        >>> first = reader.read([[1, 50, 60], [1, 70]])  # five tokens go through the model
        >>> second = reader.read([[1, 50, 60, 80], [1, 70, 90]])  # two more
        >>> second.hidden.shape, second.logits.shape
        (torch.Size([2, 256]), torch.Size([2, 4096]))
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._ends = torch.zeros(0, dtype=torch.int64)
        super().__init__(model.eval())

    def _forget(self, num_rows: int) -> None:
        super()._forget(num_rows)
        self._last: NextToken | None = None

    def read(self, texts: Sequence[Text | None]) -> NextToken:
        """What the model says about the end of each text.

        Args:
            texts: Token ids per row; None for a row that nobody asks about. Such a row holds what
                was last said about it, or zeros.

        Raises:
            InvalidArgumentError: If a text is empty, or no row was ever asked about.
        """
        self.advance(texts)
        if self._last is None:
            raise InvalidArgumentError("texts", texts, "pass the text of at least one row")
        return self._last

    def _further_inputs(self, restart: Tensor | None) -> dict[str, Any]:
        self._ends = self._tensor([0]) if restart is None else (restart - 1).unique()
        keep = {"logits_to_keep": self._ends} if "logits_to_keep" in self._parameters else {}
        return {"output_hidden_states": True, **keep}

    def _forward(self, inputs: Mapping[str, Any]) -> tuple[Any, None]:
        return self._module(**inputs), None

    def _remember(self, done: Pass) -> None:
        hidden = done.newest(done.output.hidden_states[-1]).float()
        logits = done.output.logits
        if "logits_to_keep" in self._parameters:  # Only the columns where a text ends.
            column = torch.searchsorted(self._ends, done.lengths - 1) if done.is_restart else 0
            logits = logits[done.at, column].float()
        else:
            logits = done.newest(logits).float()
        if self._last is None:
            shapes = ((len(self._texts), values.shape[1]) for values in (hidden, logits))
            self._last = NextToken(*(hidden.new_zeros(shape) for shape in shapes))
        # Out of place: what was handed out before stays as it was.
        self._last = NextToken(
            self._last.hidden.index_copy(0, done.rows, hidden),
            self._last.logits.index_copy(0, done.rows, logits),
        )

    def _newest(self) -> Tensor:
        assert self._last is not None
        return torch.cat(self._last, dim=1)


class IncrementalRewardModel(IncrementalDecoder):
    """Reads growing texts with a causal reward model: prefix scores and attention maps.

    Args:
        reward_model: The reward model, a decoder.
        readouts: What to read out, of the classes ``PrefixScores`` and ``AttentionMap``.

    Raises:
        InvalidArgumentError: If it is no decoder, cannot give a read-out, or the read-out is of
            another class: those need the whole text at once.

    Example:
        >>> from textgym.models import load_reward_model
        >>> reader = IncrementalRewardModel(load_reward_model("embedded"), [PrefixScores()])
        >>> _ = reader.read(Completions.from_lists([[1, 50, 60]], [[80]]))
        >>> scored = reader.read(Completions.from_lists([[1, 50, 60]], [[80, 90]]))  # one token
        >>> scored[PrefixScores()].shape
        torch.Size([1, 5])
    """

    def __init__(self, reward_model: RewardModel, readouts: Collection[Readout]) -> None:
        if not self.can_read(reward_model, readouts):
            raise InvalidArgumentError(
                "readouts",
                readouts,
                "only PrefixScores and AttentionMap of a decoder can be read token by token; use "
                "reward_model.read",
            )
        reward_model.check_readouts(readouts)
        self.reward_model = reward_model
        self.readouts = frozenset(readouts)
        self._wanted = [readout for readout in readouts if isinstance(readout, AttentionMap)]
        self._last_only = all(layer_indices(one.layers) == (-1,) for one in self._wanted)
        super().__init__(reward_model.model.base_model)

    @staticmethod
    def can_read(reward_model: RewardModel, readouts: Collection[Readout]) -> bool:
        """Whether a reward model and read-outs are of the kind that can be read token by token.

        A class with a ``read`` of its own is not: what it does to a batch is unknown here.
        """
        return (
            getattr(type(reward_model), "read", None) is RewardModel.read
            and reward_model.is_causal
            and all(isinstance(readout, PrefixScores | AttentionMap) for readout in readouts)
        )

    def _forget(self, num_rows: int) -> None:
        super()._forget(num_rows)
        device = self._mask.device
        self._scores = torch.zeros((num_rows, 0), device=device)
        self._maps = {one: torch.zeros((num_rows, 0, 0), device=device) for one in self._wanted}

    def read(self, completions: Completions, rows: Tensor | None = None) -> ScoredCompletions:
        """Score a batch whose texts have grown, or not, since the last time.

        Args:
            completions: All rows of the batch.
            rows: The rows that are asked about, shape (batch,), bool; None for all. The others are
                not read.

        Returns:
            The rows asked about, at the left end, with what ``reward_model.read`` gives.

        Raises:
            InvalidArgumentError: If a row that is asked about has no token.
        """
        completions = completions.to(self._mask.device)
        if rows is None:
            rows = torch.ones(len(completions), dtype=torch.bool)
        asked = rows.to(self._mask.device).nonzero()[:, 0]
        chosen = completions.select(asked)
        aligned = LeftAligned.of(chosen)
        lengths = aligned.attention_mask.sum(1)
        texts: list[Text | None] = [None] * len(completions)
        for row, ids, length in zip(
            asked.tolist(), aligned.input_ids.tolist(), lengths.tolist(), strict=True
        ):
            texts[row] = ids[:length]
        self.advance(texts)
        longest = aligned.input_ids.shape[1]
        scores = self._scores[asked, :longest]
        values: dict[Readout, Tensor] = {
            one: kept[asked, :longest, :longest] for one, kept in self._maps.items()
        }
        if PrefixScores() in self.readouts:
            values[PrefixScores()] = scores
        return ScoredCompletions(
            aligned.input_ids,
            aligned.attention_mask,
            chosen.completion_mask.gather(1, aligned.order),
            score=scores.gather(1, lengths[:, None] - 1)[:, 0],
            readouts=values,
            reward_model=self.reward_model,
        )

    def _forward(self, inputs: Mapping[str, Any]) -> tuple[Any, RecordedAttention | None]:
        if not self._wanted:
            return self._module(**inputs), None
        recorder = self.reward_model.attention_recorder()
        return recorder.run(self._module, inputs, self._last_only)

    def _remember(self, done: Pass) -> None:
        self._reserve(int(done.lengths.max()))
        scores = self.reward_model.score_states(done.output.last_hidden_state)
        rows, last = done.rows, done.lengths - 1
        if not done.is_restart:
            self._scores[rows, last] = done.newest(scores)
            for one, kept in self._maps.items():
                kept[rows, last] = self._own_columns(self._weights(done, one)[done.at, 0], done)
            return
        width = scores.shape[1]
        mask = torch.arange(width, device=rows.device) <= last[:, None]
        self._scores[rows] = 0.0
        self._scores[rows, :width] = scores * mask
        for one, kept in self._maps.items():
            kept[rows] = 0.0
            kept[rows, :width, :width] = self._weights(done, one) * mask[:, :, None]

    @staticmethod
    def _weights(done: Pass, readout: AttentionMap) -> Tensor:
        """Attention of the tokens that a pass read to all columns."""
        assert done.attention is not None
        return done.attention.weights(readout.layers, readout.heads)

    def _own_columns(self, weights: Tensor, done: Pass) -> Tensor:
        """From columns in which every text ends in the last one to the texts' own tokens."""
        width = weights.shape[1]
        tokens = torch.arange(self._scores.shape[1], device=weights.device)
        columns = tokens + (width - done.lengths)[:, None]
        return weights.gather(1, columns.clamp(max=width - 1)) * (columns < width)

    def _reserve(self, length: int) -> None:
        """Make room for texts of this length, by doubling."""
        room = self._scores.shape[1]
        if length > room:
            more = max(length, 2 * room, 16) - room
            self._scores = pad(self._scores, (0, more))
            self._maps = {one: pad(kept, (0, more, 0, more)) for one, kept in self._maps.items()}

    def _newest(self) -> Tensor:
        ends = self._tensor([len(text or [0]) - 1 for text in self._texts])
        rows = torch.arange(len(ends), device=ends.device)
        newest = [kept[rows, ends, :4] for kept in self._maps.values()]
        return torch.cat([self._scores[rows, ends, None], *newest], dim=1)
