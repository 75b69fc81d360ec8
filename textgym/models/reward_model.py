"""The reward model: one forward pass over a padded batch gives scores and read-outs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.errors import InvalidArgumentError
from textgym.models.completions import Completions, LeftAligned, ScoredCompletions
from textgym.models.readouts import (
    AttentionMap,
    AttentionRow,
    GradientTimesInput,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    Readout,
    layer_indices,
)
from textgym.models.recorder import AttentionRecorder, RecordedAttention

__all__ = ["RewardModel"]


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
        self.attention_profile: list[float] | None = getattr(config, "attention_profile", None)
        """How its attention is spread over a completion on average; see textgym.models.profile."""
        self._recorder: AttentionRecorder | None = None
        # A decoder would keep the keys and values of all layers for tokens that never come.
        parameters = inspect.signature(model.base_model.forward).parameters
        without_cache = self.is_causal and "use_cache" in parameters
        self._arguments = {"use_cache": False} if without_cache else {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights; scores are float32 always."""
        return self.model.dtype

    @property
    def max_length(self) -> int | None:
        """Longest text in tokens, or None if the model's config names no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def is_fused(self) -> bool:
        """Whether attention is read beside the fused kernel rather than from eager maps."""
        return self.attention_recorder().is_fused

    def attention_recorder(self) -> AttentionRecorder:
        """What reads the model's attention while it runs; made when it is first needed."""
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

    def check_readouts(self, readouts: Collection[Readout]) -> None:
        """Check that this model can give some read-outs.

        Raises:
            InvalidArgumentError: If one of them is none, or names a layer or a head that the model
                does not have.
        """
        for readout in readouts:
            if not isinstance(readout, Readout):
                raise InvalidArgumentError(
                    "readouts", readout, "pass instances of the classes in textgym.models.readouts"
                )
            num_layers = self.model.config.num_hidden_layers
            for layer in layer_indices(getattr(readout, "layers", -1)):
                if not -num_layers <= layer < num_layers:
                    raise InvalidArgumentError(
                        "layers", layer, f"the reward model has layers 0 to {num_layers - 1}"
                    )
            num_heads, head = self.model.config.num_attention_heads, getattr(readout, "heads", 0)
            if isinstance(head, int) and head >= num_heads:
                raise InvalidArgumentError(
                    "heads", head, f"the reward model has heads 0 to {num_heads - 1}"
                )

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Score a batch, and compute what else is asked for in the same forward pass.

        An encoder has no free prefix scores: each prefix is one more text to score.

        Args:
            completions: The texts; the score covers prompt and completion together.
            readouts: What to read out; see :mod:`textgym.models.readouts`.

        Returns:
            The batch with scores and read-outs, on the reward model's device.

        Raises:
            InvalidArgumentError: If this model cannot give a read-out.
        """
        self.check_readouts(readouts)
        completions = completions.to(self.device)
        text = LeftAligned.of(completions)
        wants_gradient = GradientTimesInput() in readouts
        with torch.set_grad_enabled(wants_gradient):
            inputs = {"input_ids": text.input_ids}
            if wants_gradient:
                embeddings = self.embed(text.input_ids).detach().requires_grad_()
                inputs = {"inputs_embeds": embeddings}
            all_scores, scores, attention = self._forward(inputs, text.attention_mask, readouts)
            if wants_gradient:
                # No row depends on another, so the gradient of the sum is every row's own.
                (gradient,) = torch.autograd.grad(scores.sum(), embeddings)
        values: dict[Readout, Tensor] = {}
        for readout in readouts:
            match readout:
                case PrefixScores():
                    if all_scores is None:
                        all_scores = self._score_prefixes(text)
                    values[readout] = text.restore(all_scores.detach())
                case AttentionRow():
                    values[readout] = text.restore(self._pooled_row(attention, text, readout))
                case AttentionMap():
                    weights = attention.weights(readout.layers, readout.heads)
                    values[readout] = text.restore_map(weights)
                case LayerAttentionMaps():
                    maps = [attention.weights(i, readout.heads) for i in range(len(attention))]
                    values[readout] = text.restore_map(torch.stack(maps, dim=1))
                case Pooling():
                    values[readout] = text.restore(self._pooling(text))
                case GradientTimesInput():
                    values[readout] = text.restore((gradient * embeddings.detach()).sum(-1).float())
        return ScoredCompletions(
            completions.input_ids,
            completions.attention_mask,
            completions.completion_mask,
            score=scores.detach(),
            readouts=values,
            reward_model=self,
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens, shape (batch, num_tokens, hidden_size)."""
        return self.model.get_input_embeddings()(input_ids)

    def score_embeddings(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Score texts that are given as embeddings; gradients flow.

        Args:
            embeddings: Shape (batch, num_tokens, hidden_size), texts at the left end.
            attention_mask: True at the tokens, shape (batch, num_tokens), bool.

        Returns:
            float32, shape (batch,).
        """
        return self._forward({"inputs_embeds": embeddings}, attention_mask, ())[1]

    def score_states(self, states: Tensor) -> Tensor:
        """The scores that a decoder's last hidden states stand for.

        Args:
            states: Shape (..., hidden_size).

        Returns:
            float32, shape (...).
        """
        head: torch.nn.Linear = self.model.score  # type: ignore[assignment]
        return self._to_score(head(states))

    def _forward(
        self, inputs: Mapping[str, Tensor], mask: Tensor, readouts: Collection[Readout]
    ) -> tuple[Tensor | None, Tensor, RecordedAttention]:
        """Scores of all positions (batch, num_tokens), the score (batch,), and the attention."""
        # A decoder's head is applied to the base model's output here, at every position: the
        # library's own pooling looks for padding ids among the tokens.
        module = self.model.base_model if self.is_causal else self.model
        arguments: dict[str, Any] = {**inputs, "attention_mask": mask.long(), **self._arguments}
        wanted = [one for one in readouts if hasattr(one, "heads")]
        if wanted:
            # LayerAttentionMaps, which names no layers, needs all of them.
            last_only = all(layer_indices(getattr(one, "layers", 0)) == (-1,) for one in wanted)
            rows_only = all(isinstance(one, AttentionRow) for one in wanted)
            positions = self._pooled_position(mask) if rows_only else None
            recorder = self.attention_recorder()
            output, attention = recorder.run(module, arguments, last_only, positions)
        else:
            output, attention = module(**arguments), RecordedAttention([])
        if not self.is_causal:
            return None, self._to_score(output.logits), attention
        all_scores = self.score_states(output.last_hidden_state)  # (batch, num_tokens)
        last = mask.sum(1, keepdim=True) - 1
        return all_scores, all_scores.gather(1, last)[:, 0], attention

    def _pooling(self, text: LeftAligned) -> Tensor:
        """What the score is read from, shape (batch, longest text), rows that sum to 1."""
        mask = text.attention_mask
        position = self._pooled_position(mask)
        if position is None:
            return mask / mask.sum(1, keepdim=True)
        return torch.nn.functional.one_hot(position, mask.shape[1]).float()

    def _pooled_position(self, mask: Tensor) -> Tensor | None:
        """The position that is pooled, shape (batch,), int64; None where it is the mean of all."""
        lengths = mask.sum(1)
        if self.is_causal:
            return lengths - 1
        pooling = getattr(self.model.config, "classifier_pooling", None)
        return None if pooling == "mean" else torch.zeros_like(lengths)

    def _pooled_row(
        self, attention: RecordedAttention, text: LeftAligned, readout: AttentionRow
    ) -> Tensor:
        """The attention of the pooled position, or the mean over several of them."""
        position = self._pooled_position(text.attention_mask)
        weights = attention.weights(readout.layers, readout.heads, position)
        if position is None:
            return torch.einsum("bs,bst->bt", self._pooling(text), weights)
        return weights

    @torch.no_grad()
    def _score_prefixes(self, text: LeftAligned) -> Tensor:
        """Score every prefix of every text by a forward pass of its own, as encoders need."""
        columns = []
        for end in range(1, text.input_ids.shape[1] + 1):
            prefix_mask = text.attention_mask[:, :end].long()
            prefix = self.model(input_ids=text.input_ids[:, :end], attention_mask=prefix_mask)
            columns.append(self._to_score(prefix.logits))
        return torch.stack(columns, dim=1)
