"""The reward model: one forward pass over a padded batch gives scores and read-outs."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.errors import InvalidArgumentError
from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.readout import AttentionRecorder

__all__ = ["READOUTS", "RewardModel"]

READOUTS = frozenset({"attention", "attention_map", "prefix_scores"})
"""What can be asked of a reward model besides the score."""


class RewardModel:
    """A sequence classifier as a reward model.

    The score of a text is logit(positive) - logit(negative), or the only logit of a model with
    one label; it is centred and scaled by the mean and the standard deviation that the model
    ships for reference completions (``score_mean`` and ``score_std`` in its config), if any. A
    Bradley-Terry score has no zero of its own, and redistributed credit, unlike the sparse reward,
    depends on where zero is.

    Sequences are moved to the left end before the forward pass, so the side of the padding
    changes nothing, and the position that the score is read from follows from the attention mask
    alone: an end token that is also the padding token is not lost.

    Args:
        model: A Hugging Face sequence classifier with one or two labels. Decoders are read at the
            last token; encoders as they pool. It is left as it is, apart from evaluation mode.
        tokenizer: The tokenizer that the model was trained with.
        normalize_score: Whether to centre and scale the score by the shipped statistics.

    Raises:
        InvalidArgumentError: If the model is not a sequence classifier with one or two labels.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        normalize_score: bool = True,
    ) -> None:
        config = getattr(model, "config", None)
        if config is None or not type(model).__name__.endswith("ForSequenceClassification"):
            raise InvalidArgumentError(
                "reward_model",
                type(model).__name__,
                "must be a Hugging Face sequence classifier (AutoModelForSequenceClassification)",
            )
        if config.num_labels not in (1, 2):
            raise InvalidArgumentError(
                "reward_model",
                config.num_labels,
                "the model must have one label (a score) or two (negative, positive)",
            )
        if getattr(config, "is_encoder_decoder", False):
            raise InvalidArgumentError(
                "reward_model",
                type(model).__name__,
                "pass a decoder or an encoder, not both in one",
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.is_causal = isinstance(getattr(model, "score", None), torch.nn.Linear)
        """Whether every prefix is scored in the same forward pass."""
        self.score_mean = float(getattr(config, "score_mean", 0.0)) if normalize_score else 0.0
        self.score_std = float(getattr(config, "score_std", 1.0)) if normalize_score else 1.0
        if not self.score_std > 0:
            raise InvalidArgumentError(
                "score_std", self.score_std, "the standard deviation in the config must be positive"
            )
        labels = {str(name).lower(): int(i) for i, name in (config.id2label or {}).items()}
        self._positive = labels.get("positive", config.num_labels - 1)
        self._recorder: AttentionRecorder | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, or None if the model's config names no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def is_fused(self) -> bool:
        """Whether attention is read beside the fused kernel rather than from eager maps."""
        return self._attention_recorder().is_fused

    def _attention_recorder(self) -> AttentionRecorder:
        if self._recorder is None:
            self._recorder = AttentionRecorder(self.model)
        return self._recorder

    def _to_score(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        if logits.shape[-1] == 1:
            raw = logits[..., 0]
        else:
            raw = logits[..., self._positive] - logits[..., 1 - self._positive]
        return (raw - self.score_mean) / self.score_std

    @torch.no_grad()
    def read(self, completions: Completions, readouts: Collection[str] = ()) -> ScoredCompletions:
        """Score a batch, and compute what else is asked for in the same forward pass.

        An encoder has no free prefix scores: each prefix is one more text to score.

        Args:
            completions: The texts; the score covers prompt and completion together.
            readouts: Any of :data:`READOUTS`.

        Returns:
            The batch with scores and read-outs, on the reward model's device.

        Raises:
            InvalidArgumentError: If a read-out is unknown.
        """
        unknown = set(readouts) - READOUTS
        if unknown:
            raise InvalidArgumentError(
                "readouts", sorted(unknown), f"choose from {sorted(READOUTS)}"
            )
        completions = Completions(
            completions.input_ids.to(self.device),
            completions.attention_mask.to(self.device),
            completions.completion_mask.to(self.device),
        )
        # order[b] lists the real tokens of row b first, in their order: a stable sort of the mask.
        order = (~completions.attention_mask).long().argsort(dim=1, stable=True)
        mask = completions.attention_mask.gather(1, order)
        num_tokens = int(mask.sum(1).max())
        order, mask = order[:, :num_tokens], mask[:, :num_tokens]
        input_ids = completions.input_ids.gather(1, order)

        scores, prefix_scores, weights = self._forward(input_ids, mask, readouts)

        def restore(values: Tensor) -> Tensor:
            """Put values at the left end back where their tokens came from."""
            result = values.new_zeros(completions.input_ids.shape)
            return result.scatter(1, order, values.masked_fill(~mask, 0.0))

        attention = attention_map = None
        if weights is not None and weights.ndim == 3:
            weights = weights * mask[:, :, None] * mask[:, None, :]
            if "attention_map" in readouts:
                attention_map = self._restore_map(weights, order, completions.input_ids.shape[1])
            if "attention" in readouts:
                attention = restore(self._pooled_row(weights, mask))
        elif weights is not None:
            attention = restore(weights)
        return ScoredCompletions(
            completions.input_ids,
            completions.attention_mask,
            completions.completion_mask,
            score=scores,
            prefix_scores=None if prefix_scores is None else restore(prefix_scores),
            attention=attention,
            attention_map=attention_map,
        )

    def _pooled_position(self, mask: Tensor) -> Tensor:
        return mask.sum(1) - 1 if self.is_causal else torch.zeros_like(mask[:, 0], dtype=torch.long)

    @property
    def _pools_by_mean(self) -> bool:
        return getattr(self.model.config, "classifier_pooling", None) == "mean"

    def _pooled_row(self, weights: Tensor, mask: Tensor) -> Tensor:
        if not self.is_causal and self._pools_by_mean:
            return weights.sum(1) / mask.sum(1, keepdim=True)
        return weights[torch.arange(len(mask), device=mask.device), self._pooled_position(mask)]

    def _forward(
        self, input_ids: Tensor, mask: Tensor, readouts: Collection[str]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores (batch,), prefix scores (batch, num_tokens), attention row or map."""
        # A decoder's head is applied to the base model's output here, at every position: the
        # library's own pooling looks for padding ids among the tokens.
        module = self.model.base_model if self.is_causal else self.model
        weights = None
        if "attention" in readouts or "attention_map" in readouts:
            whole_map = "attention_map" in readouts or (not self.is_causal and self._pools_by_mean)
            positions = None if whole_map else self._pooled_position(mask)
            output, weights = self._attention_recorder().run(module, input_ids, mask, positions)
        else:
            output = module(input_ids=input_ids, attention_mask=mask.long())
        if self.is_causal:
            head: torch.nn.Linear = self.model.score  # type: ignore[assignment]
            all_scores = self._to_score(head(output.last_hidden_state))  # (batch, num_tokens)
            scores = all_scores.gather(1, self._pooled_position(mask)[:, None])[:, 0]
            return scores, all_scores if "prefix_scores" in readouts else None, weights
        scores = self._to_score(output.logits)
        prefixes = self._score_prefixes(input_ids, mask) if "prefix_scores" in readouts else None
        return scores, prefixes, weights

    def _score_prefixes(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Score every prefix of every text by a forward pass of its own."""
        columns = []
        for end in range(1, input_ids.shape[1] + 1):
            prefix_mask = mask[:, :end].long()
            logits = self.model(input_ids=input_ids[:, :end], attention_mask=prefix_mask).logits
            columns.append(self._to_score(logits))
        return torch.stack(columns, dim=1)

    @staticmethod
    def _restore_map(weights: Tensor, order: Tensor, num_tokens: int) -> Tensor:
        batch = len(order)
        result = weights.new_zeros((batch, num_tokens, num_tokens))
        rows = torch.arange(batch, device=order.device)[:, None, None]
        result[rows, order[:, :, None], order[:, None, :]] = weights
        return result
