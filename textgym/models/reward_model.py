"""The reward model: one forward pass over a padded batch gives scores and read-outs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textgym.checks import check_flag
from textgym.errors import InvalidArgumentError
from textgym.models.checks import check_tokenizer, check_weights
from textgym.models.completions import Completions, LeftAligned, ScoredCompletions
from textgym.models.placement import check_on_one_device
from textgym.models.readouts import (
    AttentionMap,
    AttentionRow,
    GradientTimesInput,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    Readout,
    checked_readouts,
    layer_indices,
)
from textgym.models.recorder import AttentionRecorder, RecordedAttention
from textgym.models.score import Score, make_score
from textgym.models.signature import (
    forward_parameters,
    longest_text,
    padding_of,
    unwrapped,
)
from textgym.models.verification import (
    fault_of_attention,
    fault_of_gradient,
    fault_of_scores,
)

__all__ = ["RewardModel"]


class RewardModel:
    """A sequence classifier used as a reward model.

    The score of a text is logit(positive) - logit(negative), or the only logit of a model with one
    label; ``score`` and ``label`` choose another. If the model's config has ``score_mean`` and
    ``score_std``, its statistics over reference completions, the score is centred and scaled by
    them: a Bradley-Terry score has no natural zero, and redistributed credit, unlike the sparse
    reward, depends on where zero is.

    Sequences are moved to the left end before the forward pass, so the side of the padding does not
    matter. The position that the score is read from follows from the attention mask alone, so an
    end token that doubles as the padding token is not lost.

    Args:
        model: A Hugging Face sequence classifier. A decoder is read at its last token, an encoder
            with its own pooling. The model is put in evaluation mode and otherwise left as it is.
            Of a ``peft.PeftModel``, the classifier inside is read, with its adapters.
        tokenizer: The tokenizer that the model was trained with.
        normalize_score: Whether to centre and scale the score by the config's statistics.
        template: Text around prompt and completion, such as ``"Review: {prompt}{completion}"``, or
            ``"chat"`` for the tokenizer's chat template; see
            :class:`textgym.models.bridge.TextTemplate`. Environments fill it in. :meth:`read` takes
            token ids, and does not.
        score: How the logits become a score; see :func:`textgym.models.score.make_score`. The
            statistics in the config belong to the default and are used with no other.
        label: The label that counts; needed for more than two.

    Raises:
        InvalidArgumentError: If the model is not a sequence classifier, is spread over several
            devices, has more than two labels and no score is chosen, has fewer embeddings than the
            tokenizer has tokens, its statistics are not usable, or its scores cannot be trusted;
            see :mod:`textgym.models.verification`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        normalize_score: bool = True,
        template: str | None = None,
        score: Score | None = None,
        label: str | int | None = None,
    ) -> None:
        _check_is_classifier(model)
        check_on_one_device("reward_model", model)
        if tokenizer is not None:  # Without one, the model reads token ids all the same.
            check_tokenizer("tokenizer", tokenizer)
        check_flag("normalize_score", normalize_score)
        _check_template(template)
        check_weights("reward_model", _name_of(model), model)
        self.model = unwrapped(model).eval()
        self.tokenizer = tokenizer
        self.template = template
        if tokenizer is not None and self.num_embeddings < len(tokenizer):
            raise InvalidArgumentError(
                "reward_model",
                _name_of(model),
                f"its embedding has {self.num_embeddings} rows, fewer than the {len(tokenizer)} "
                "tokens of the tokenizer; pass RewardModel(model, tokenizer) with the tokenizer "
                "that the model was trained with",
            )
        self.is_causal = _is_linear(getattr(self.model, "score", None))
        """Whether one forward pass scores every prefix."""
        normalize_score = normalize_score and score is None and label is None
        self.score_mean = _statistic(model, "score_mean", 0.0) if normalize_score else 0.0
        self.score_std = _statistic(model, "score_std", 1.0) if normalize_score else 1.0
        config: Any = self.model.config
        self._padding = padding_of(config, self.num_embeddings)
        self.max_length = longest_text(self.model)
        """Longest text in tokens, or None if the model's config sets no limit."""
        try:
            self._score = make_score(config, score, label)
        except InvalidArgumentError as error:
            if score is not None or label is not None:
                raise
            raise InvalidArgumentError("reward_model", _name_of(model), error.remedy) from None
        self.attention_profile: list[float] | None = getattr(config, "attention_profile", None)
        """How attention spreads over a completion on average; see textgym.models.profile."""
        self._recorder: AttentionRecorder | None = None
        # Without this, a decoder would keep keys and values for tokens that never come.
        parameters = forward_parameters(self.model.base_model)
        without_cache = self.is_causal and "use_cache" in parameters
        self._arguments = {"use_cache": False} if without_cache else {}
        self._is_attention_verified = self._is_gradient_verified = False
        fault = fault_of_scores(self)
        if fault is not None:
            raise InvalidArgumentError("reward_model", _name_of(model), f"{fault}; use another one")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights. Scores are always float32."""
        return self.model.dtype

    @property
    def num_embeddings(self) -> int:
        """Number of token ids that the model can embed."""
        try:
            embeddings: Any = self.model.get_input_embeddings()
            return int(embeddings.num_embeddings)
        except (NotImplementedError, AttributeError):
            remedy = "it has no table of embeddings, one row per token id; use another one"
            raise InvalidArgumentError("reward_model", _name_of(self.model), remedy) from None

    @property
    def is_fused(self) -> bool:
        """Whether attention is recorded beside the fused kernel; False if from eager maps."""
        return self.attention_recorder().is_fused

    def attention_recorder(self) -> AttentionRecorder:
        """The recorder of the model's attention, created on first use."""
        if self._recorder is None:
            self._recorder = AttentionRecorder(self.model)
        return self._recorder

    def check_readouts(self, readouts: Collection[Readout]) -> None:
        """Check that this model supports some read-outs.

        Raises:
            InvalidArgumentError: If one of them is not a read-out, names a layer or a head that the
                model does not have, or is attention or a gradient that cannot be trusted; see
                :mod:`textgym.models.verification`.
        """
        config = self.model.config.get_text_config()
        num_layers, num_heads = config.num_hidden_layers, config.num_attention_heads
        for readout in checked_readouts(readouts):
            for layer in layer_indices(getattr(readout, "layers", -1)):
                if not -num_layers <= layer < num_layers:
                    raise InvalidArgumentError(
                        "layers", layer, f"the reward model has layers 0 to {num_layers - 1}"
                    )
            head = getattr(readout, "heads", 0)
            if isinstance(head, int) and head >= num_heads:
                raise InvalidArgumentError(
                    "heads", head, f"the reward model has heads 0 to {num_heads - 1}"
                )
        needs_attention = any(hasattr(readout, "heads") for readout in readouts)
        if needs_attention and not self._is_attention_verified:
            fault = fault_of_attention(self)
            if fault is not None:
                remedy = f"{fault}; use credit that does not read attention, or another model"
                raise InvalidArgumentError("reward_model", _name_of(self.model), remedy)
            self._is_attention_verified = True
        if GradientTimesInput() in readouts and not self._is_gradient_verified:
            fault = fault_of_gradient(self)
            if fault is not None:
                remedy = f"{fault}; use credit that needs no gradient, or another model"
                raise InvalidArgumentError("reward_model", _name_of(self.model), remedy)
            self._is_gradient_verified = True

    def read(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """Score a batch, and compute read-outs in the same forward pass.

        Prefix scores are the exception for an encoder, which scores each prefix as a text of its
        own.

        Args:
            completions: The texts. The score covers prompt and completion together.
            readouts: What to read out besides the score; see :mod:`textgym.models.readouts`.

        Returns:
            The batch with scores and read-outs, on the reward model's device.

        Raises:
            InvalidArgumentError: If this model does not support a read-out.
        """
        self.check_readouts(readouts)
        return self.read_unverified(completions, readouts)

    def read_unverified(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions:
        """The same as :meth:`read`, without asking whether the read-outs can be trusted."""
        completions = completions.to(self.device)
        text = LeftAligned.of(completions).with_padding(self._padding)
        if GradientTimesInput() in readouts:
            reading = self._read_with_gradient(text, readouts)
        else:
            with torch.no_grad():
                reading = self._forward(
                    {"input_ids": text.input_ids}, text.attention_mask, readouts
                )
        return ScoredCompletions(
            completions.input_ids,
            completions.attention_mask,
            completions.completion_mask,
            score=reading.score.detach(),
            readouts={readout: self._read_out(readout, reading, text) for readout in readouts},
            reward_model=self,
        )

    @torch.no_grad()
    def score_ids(self, texts: Sequence[Sequence[int]], max_rows: int = 256) -> Tensor:
        """Scores of token lists; texts of similar length go together, so that little is padding.

        Args:
            texts: Token ids of each text. A text without tokens counts 0.
            max_rows: Largest number of texts in one forward pass.

        Returns:
            float32, shape (num_texts,), on the model's device.
        """
        scores = torch.zeros(len(texts), device=self.device)
        lengths = torch.tensor([len(ids) for ids in texts])
        order = lengths.argsort(stable=True)
        for rows in order[lengths[order] > 0].split(max_rows):
            ids = [texts[int(row)] for row in rows]
            batch = Completions.from_lists([[] for _ in ids], ids, device=self.device)
            scores[rows.to(self.device)] = self.read(batch).score
        return scores

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens, shape (batch, num_tokens, hidden_size)."""
        return self.model.get_input_embeddings()(input_ids)

    def score_embeddings(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        """Score texts given as embeddings; gradients flow.

        Args:
            embeddings: Shape (batch, num_tokens, hidden_size), texts at the left end.
            attention_mask: True at the tokens, shape (batch, num_tokens), bool.

        Returns:
            float32, shape (batch,).
        """
        return self._forward({"inputs_embeds": embeddings}, attention_mask, ()).score

    def score_states(self, states: Tensor) -> Tensor:
        """Apply a decoder's head to its last hidden states.

        Args:
            states: Shape (..., hidden_size).

        Returns:
            Scores, float32, shape (...).
        """
        head: torch.nn.Linear = self.model.score  # type: ignore[assignment]
        return self._to_score(head(states))

    def _to_score(self, logits: Tensor) -> Tensor:
        return (self._score(logits.float()) - self.score_mean) / self.score_std

    def _forward(
        self, inputs: Mapping[str, Tensor], mask: Tensor, readouts: Collection[Readout]
    ) -> _Reading:
        # For a decoder the head is applied here, at every position: the library's own pooling
        # would look for padding ids among the tokens.
        module = self.model.base_model if self.is_causal else self.model
        arguments: dict[str, Any] = {**inputs, "attention_mask": mask.long(), **self._arguments}
        wanted = [one for one in readouts if hasattr(one, "heads")]
        if wanted:
            # LayerAttentionMaps, which has no attribute layers, needs all of them.
            last_only = all(layer_indices(getattr(one, "layers", 0)) == (-1,) for one in wanted)
            rows_only = all(isinstance(one, AttentionRow) for one in wanted)
            positions = self._pooled_position(mask) if rows_only else None
            recorder = self.attention_recorder()
            output, attention = recorder.run(module, arguments, last_only, positions)
        else:
            output, attention = module(**arguments), RecordedAttention([])
        if not self.is_causal:
            return _Reading(self._to_score(output.logits), None, attention)
        prefix_scores = self.score_states(output.last_hidden_state)
        last = mask.sum(1, keepdim=True) - 1
        return _Reading(prefix_scores.gather(1, last)[:, 0], prefix_scores, attention)

    def _read_with_gradient(self, text: LeftAligned, readouts: Collection[Readout]) -> _Reading:
        with torch.enable_grad():
            embeddings = self.embed(text.input_ids).detach().requires_grad_()
            reading = self._forward({"inputs_embeds": embeddings}, text.attention_mask, readouts)
            # Rows are independent, so the gradient of the sum holds each row's own gradient.
            (gradient,) = torch.autograd.grad(reading.score.sum(), embeddings)
        reading.gradient_times_input = (gradient * embeddings.detach()).sum(-1).float()
        return reading

    def _read_out(self, readout: Readout, reading: _Reading, text: LeftAligned) -> Tensor:
        """One read-out, in the columns of the original batch."""
        attention = reading.attention
        match readout:
            case PrefixScores():
                if reading.prefix_scores is None:
                    return text.restore(self._score_prefixes(text))
                return text.restore(reading.prefix_scores.detach())
            case AttentionRow():
                return text.restore(self._pooled_row(attention, text, readout))
            case AttentionMap():
                return text.restore_map(attention.weights(readout.layers, readout.heads))
            case LayerAttentionMaps():
                maps = [attention.weights(i, readout.heads) for i in range(len(attention))]
                return text.restore_map(torch.stack(maps, dim=1))
            case Pooling():
                return text.restore(self._pooling(text))
            case GradientTimesInput():
                assert reading.gradient_times_input is not None
                return text.restore(reading.gradient_times_input)

    def _pooling(self, text: LeftAligned) -> Tensor:
        """Share of each position in the pooled state, (batch, longest text); rows sum to 1."""
        mask = text.attention_mask
        position = self._pooled_position(mask)
        if position is None:
            return mask / mask.sum(1, keepdim=True)
        return torch.nn.functional.one_hot(position, mask.shape[1]).float()

    def _pooled_position(self, mask: Tensor) -> Tensor | None:
        """The pooled position, shape (batch,), int64; None if the mean of all is pooled."""
        lengths = mask.sum(1)
        if self.is_causal:
            return lengths - 1
        pooling = getattr(self.model.config, "classifier_pooling", None)
        return None if pooling == "mean" else torch.zeros_like(lengths)

    def _pooled_row(
        self, attention: RecordedAttention, text: LeftAligned, readout: AttentionRow
    ) -> Tensor:
        """Attention paid by the pooled position, or its mean over all positions."""
        position = self._pooled_position(text.attention_mask)
        weights = attention.weights(readout.layers, readout.heads, position)
        if position is None:
            return torch.einsum("bs,bst->bt", self._pooling(text), weights)
        return weights

    @torch.no_grad()
    def _score_prefixes(self, text: LeftAligned) -> Tensor:
        """Score each prefix in a forward pass of its own, as an encoder needs."""
        columns = []
        for end in range(1, text.input_ids.shape[1] + 1):
            prefix_mask = text.attention_mask[:, :end].long()
            prefix = self.model(input_ids=text.input_ids[:, :end], attention_mask=prefix_mask)
            columns.append(self._to_score(prefix.logits))
        return torch.stack(columns, dim=1)


@dataclass
class _Reading:
    """What one forward pass over left-aligned texts gave.

    Attributes:
        score: Score of each text, shape (batch,), float32.
        prefix_scores: Score of each prefix, shape (batch, longest text); None for an encoder.
        attention: The recorded attention; empty if no read-out needs it.
        gradient_times_input: Shape (batch, longest text), float32; None if not requested.
    """

    score: Tensor
    prefix_scores: Tensor | None
    attention: RecordedAttention
    gradient_times_input: Tensor | None = None


def _check_is_classifier(model: PreTrainedModel) -> None:
    config = getattr(model, "config", None)
    if config is None or not type(model).__name__.endswith("ForSequenceClassification"):
        raise InvalidArgumentError(
            "reward_model",
            type(model).__name__,
            "must be a Hugging Face sequence classifier (AutoModelForSequenceClassification)",
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InvalidArgumentError(
            "reward_model",
            _name_of(model),
            "it puts trained tokens before a text, which the tokens of the text cannot be told "
            "from; pass a model with LoRA adapters, or without any",
        )
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidArgumentError(
            "reward_model",
            _name_of(model),
            "it is an encoder-decoder; pass a decoder or an encoder",
        )


def _is_linear(head: Any) -> bool:
    """Whether a head is one linear layer, trained as such or by the adapters of peft."""
    trained = getattr(head, "original_module", None) or getattr(head, "base_layer", None)
    return isinstance(trained or head, torch.nn.Linear)


def _check_template(template: Any) -> None:
    """Check a template as far as it can be without the tokenizer: None, "chat", text or parts."""
    if template in (None, "chat") or hasattr(template, "fill"):
        return
    marks = ("{prompt}", "{completion}")
    if not isinstance(template, str) or not all(mark in template for mark in marks):
        raise InvalidArgumentError(
            "template", template, 'must be text with {prompt} and {completion}, "chat", or None'
        )


def _statistic(model: PreTrainedModel, name: str, default: float) -> float:
    """A statistic of the score from the model's config."""
    value = getattr(model.config, name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (name == "score_std" and value <= 0):
        kind = "a positive number" if name == "score_std" else "a finite number"
        raise InvalidArgumentError(
            "reward_model",
            _name_of(model),
            f"{name} in its config is {value!r}, and must be {kind}; correct config.json, or pass "
            "normalize_score=False",
        )
    return float(value)


def _name_of(model: PreTrainedModel) -> str:
    """The folder or hub id that a model was loaded from, or else its class."""
    return getattr(model.config, "name_or_path", "") or type(model).__name__
