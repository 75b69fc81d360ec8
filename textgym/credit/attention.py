"""Credit by attention: the reward model's own, its flow through the layers, and the policy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textgym.credit.base import WeightedCredit
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionRecorder,
    AttentionRow,
    LayerAttentionMaps,
    LeftAligned,
    Pooling,
    ScoredCompletions,
    load_language_model,
)
from textgym.models.readouts import Heads, Layers, layer_indices

__all__ = [
    "AttentionCredit",
    "AttentionRolloutCredit",
    "PolicyAttentionCredit",
    "PolicyLastAttentionCredit",
    "attention_of_last_step",
    "attention_received",
    "attention_rollout",
]


@register_credit_assigner
class AttentionCredit(WeightedCredit):
    """Attention-Based Credit (ABC): shares given by the reward model's own attention.

    credit_t = β·α_t·R + (1-β)·R·1[t = T]. α is the attention row at the position that the score is
    read from, restricted to the completion and normalised (Chan et al., 2024, arXiv 2402.00782;
    they use the last layer and the mean over its heads). For an encoder, α is the row of the
    position it pools, or the mean of all rows if it pools by the mean. If all attention falls on
    the prompt, the score stays on the last token.

    Cost: nothing beyond the forward pass that gives the score.

    Guarantee: at γ = 1 every completion keeps its return, so the ranking of policies and the
    optimum are unchanged. The gradient of methods that learn from the reward to go does change.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts (-1 is the last), or a tuple of layers, whose mean
            is taken.
        heads: How the heads are reduced: "mean", "max", or the number of one head.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        Half of the attention is on the prompt. The shares of the completion are .1, .4, .1, .2, .2.

        >>> from textgym.credit import AttentionCredit
        >>> from textgym.models import AttentionRow, Completions
        >>> row = [0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {AttentionRow(): [row]})
        >>> AttentionCredit(beta=0.5)(scored)[0, 2:]
        tensor([0.1000, 0.4000, 0.1000, 0.2000, 1.2000])
    """

    name = "abc"
    label = "ABC"
    paper = "arXiv 2402.00782"
    readouts = frozenset({AttentionRow()})

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        layers: Layers = -1,
        heads: Heads = "mean",
        start: Start = "zero",
    ) -> None:
        self.layers, self.heads = layers, heads
        self._row = AttentionRow(layers, heads)
        self.readouts = frozenset({self._row})
        super().__init__(beta, gamma, start=start)

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row, shape (batch, num_tokens)."""
        return scored[self._row]


def attention_rollout(maps: Tensor, pooling: Tensor) -> Tensor:
    """Follow the attention of the pooled position through all layers down to the input.

    Half of what a layer passes on comes through the residual connection. So with
    A'_l = (A_l + I)/2 the result is p·A'_L···A'_1 (Abnar & Zuidema, 2020, arXiv 2005.00928).

    Args:
        maps: Attention maps of all layers, first to last, with rows that sum to 1, shape
            (batch, num_layers, num_tokens, num_tokens).
        pooling: p, the weight of each position in the pooled state, shape (batch, num_tokens), with
            rows that sum to 1.

    Returns:
        Shape (batch, num_tokens), with rows that sum to 1.
    """
    flow = pooling
    for layer in maps.unbind(1)[::-1]:
        flow = (torch.einsum("bs,bst->bt", flow, layer) + flow) / 2
    return flow


@register_credit_assigner
class AttentionRolloutCredit(WeightedCredit):
    """Shares given by attention that is followed through all layers.

    credit_t = β·α_t·R + (1-β)·R·1[t = T]. α is the pooled position's row of A'_L···A'_1, restricted
    to the completion and normalised, where A'_l = (A_l + I)/2 and A_l is the mean over the heads of
    layer l (attention rollout, Abnar & Zuidema, 2020, arXiv 2005.00928).

    Cost: no extra pass, but every layer's attention map is computed besides the fused kernel. Time
    and memory grow with the square of the length.

    Guarantee: the same as for :class:`AttentionCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        One layer, whose last position attends to the seven tokens as shown. Half of the flow goes
        through the residual connection and stays at the last token.

        >>> from textgym.credit import AttentionRolloutCredit
        >>> from textgym.models import Completions, LayerAttentionMaps, Pooling
        >>> layer = [[float(s == t) for t in range(7)] for s in range(7)]
        >>> layer[6] = [0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1]
        >>> last = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> readouts = {LayerAttentionMaps(): [[layer]], Pooling(): [last]}
        >>> scored = completions.with_score([2.0], readouts)
        >>> AttentionRolloutCredit(beta=0.9)(scored)[0, 2:]
        tensor([0.2000, 0.2000, 0.2000, 0.1000, 1.3000])
    """

    name = "attention-rollout"
    label = "attention rollout"
    paper = "arXiv 2005.00928"
    readouts = frozenset({LayerAttentionMaps(), Pooling()})

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The rollout of the pooled position, shape (batch, num_tokens)."""
        return scored.by_reward_model_token(
            lambda own: attention_rollout(own[LayerAttentionMaps()], own[Pooling()])
        )


def attention_received(attention_map: Tensor, completion_mask: Tensor) -> Tensor:
    """Mean attention that each token received while the tokens after it were written.

    The step that writes a token attends from the position before it. So token t is seen from the
    positions t … T-1, and no step sees the last token.

    Args:
        attention_map: Indexed [row, attends, attended to], shape (batch, num_tokens, num_tokens).
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row.

    Returns:
        Shape (batch, num_tokens), 0 outside the completion.

    Example:
        A policy that attends to the latest token and the one before it, half each. The first token
        of the completion receives .5 in two of the four steps that follow it, the second in two of
        three, the third in two of two, and the fourth in its only one.

        >>> steps = torch.tensor([[[0.5 * (s - t in (0, 1)) for t in range(7)] for s in range(7)]])
        >>> completion_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]]).bool()
        >>> attention_received(steps, completion_mask)[0, 2:]
        tensor([0.2500, 0.3333, 0.5000, 0.5000, 0.0000])
    """
    # A position writes the next token if that token belongs to the completion too.
    writes = torch.zeros_like(completion_mask)
    writes[:, :-1] = completion_mask[:, 1:]
    position = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    sees = writes[:, :, None] & (position[:, None] >= position) & completion_mask[:, None, :]
    return (attention_map * sees).sum(1) / sees.sum(1).clamp(min=1)


def attention_of_last_step(attention_map: Tensor, completion_mask: Tensor) -> Tensor:
    """Attention row of the position that wrote the last token, which is the one before it.

    Args:
        attention_map: Indexed [row, attends, attended to], shape (batch, num_tokens, num_tokens).
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row, after a prompt.

    Returns:
        Shape (batch, num_tokens).

    Example:
        The last of seven tokens is written from position 5, the one before it:

        >>> steps = torch.zeros(1, 7, 7)
        >>> steps[0, 5] = torch.tensor([0.1, 0.1, 0.4, 0.2, 0.1, 0.1, 0.0])
        >>> completion_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]]).bool()
        >>> attention_of_last_step(steps, completion_mask)[0]
        tensor([0.1000, 0.1000, 0.4000, 0.2000, 0.1000, 0.1000, 0.0000])
    """
    position = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    last = torch.where(completion_mask, position, -1).max(dim=1).values
    return attention_map[torch.arange(len(last), device=last.device), (last - 1).clamp(min=0)]


class _PolicyCredit(WeightedCredit):
    """Shares given by the attention of a causal language model over the finished completion."""

    cost = "1 forward pass of the policy"

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        layers: Layers = -1,
        heads: Heads = "mean",
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        row = AttentionRow(layers, heads)  # checks its arguments
        self.policy, self.layers, self.heads = policy, row.layers, row.heads
        try:
            self._model = load_language_model(policy)
        except InvalidArgumentError as error:
            raise InvalidArgumentError("policy", policy, error.remedy) from None
        num_layers = int(self._model.config.num_hidden_layers)
        if not all(-num_layers <= i < num_layers for i in layer_indices(layers)):
            raise InvalidArgumentError("layers", layers, f"the policy has {num_layers} layers")
        self._recorder: AttentionRecorder | None = None

    def forward_passes(self, num_tokens: int) -> int:
        """One forward pass of the policy."""
        return 1

    @torch.no_grad()
    def _attention_map(self, scored: ScoredCompletions) -> Tensor:
        """The policy's attention, shape (batch, num_tokens, num_tokens)."""
        if self._recorder is None:
            self._recorder = AttentionRecorder(self._model)
        embeddings: Any = self._model.get_input_embeddings()
        num_embeddings = len(embeddings.weight)
        if int(scored.input_ids.max()) >= num_embeddings:
            raise InvalidArgumentError(
                "policy",
                self.policy,
                f"it has only {num_embeddings} tokens, and the completions contain others: pass a "
                "model that uses the environment's tokenizer",
            )
        text = LeftAligned.of(scored.to(self._model.device))
        inputs = {
            "input_ids": text.input_ids,
            "attention_mask": text.attention_mask.long(),
            "use_cache": False,
        }
        last_only = layer_indices(self.layers) == (-1,)
        _, attention = self._recorder.run(self._model.base_model, inputs, last_only)
        weights = attention.weights(self.layers, self.heads)
        return text.restore_map(weights).to(scored.score.device)


@register_credit_assigner
class PolicyAttentionCredit(_PolicyCredit):
    """ABC-D: shares given by the attention a token received while the policy wrote the rest.

    credit_t = β·α_t·R + (1-β)·R·1[t = T]. α_t is the policy's mean attention to token t over the
    steps that wrote the tokens t+1 … T, normalised (Chan et al., 2024, arXiv 2402.00782; see
    :func:`attention_received`). Credit goes to the token that was attended to. No step attends to
    the last token, so its α is 0. A completion of one token gets its score there.

    Cost: one forward pass of the policy over the finished completion.

    Guarantee: the same as for :class:`AttentionCredit`.

    Args:
        policy: The policy: ``"embedded"``, a folder, a hub id, or a model. Pass the model that is
            being trained, and its attention changes as it learns.
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts (-1 is the last), or a tuple of layers, whose mean
            is taken.
        heads: How the heads are reduced: "mean", "max", or the number of one head.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the policy cannot be loaded.

    Example:
        >>> from textgym.credit import PolicyAttentionCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 40]], [[50, 60, 70]]).with_score([2.0])
        >>> credit = PolicyAttentionCredit("embedded", beta=1.0)(scored)
        >>> credit.shape, round(credit.sum().item(), 4), round(abs(credit[0, -1].item()), 4)
        (torch.Size([1, 5]), 2.0, 0.0)
    """

    name = "abc-d"
    label = "ABC-D"
    paper = "arXiv 2402.00782"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """Mean attention received, shape (batch, num_tokens)."""
        return attention_received(self._attention_map(scored), scored.completion_mask)


@register_credit_assigner
class PolicyLastAttentionCredit(_PolicyCredit):
    """ABC-D2: shares given by the attention of the policy's last step.

    credit_t = β·α_t·R + (1-β)·R·1[t = T]. α is the policy's attention row at the position that
    wrote the last token, normalised (Chan et al., 2024, arXiv 2402.00782; see
    :func:`attention_of_last_step`). A completion of one token gets its score there.

    Cost: one forward pass of the policy over the finished completion.

    Guarantee: the same as for :class:`AttentionCredit`.

    Args:
        policy: The policy: ``"embedded"``, a folder, a hub id, or a model. Pass the model that is
            being trained, and its attention changes as it learns.
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts (-1 is the last), or a tuple of layers, whose mean
            is taken.
        heads: How the heads are reduced: "mean", "max", or the number of one head.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or the policy cannot be loaded.

    Example:
        >>> from textgym.credit import PolicyLastAttentionCredit
        >>> from textgym.models import Completions
        >>> scored = Completions.from_lists([[1, 40]], [[50, 60, 70]]).with_score([2.0])
        >>> credit = PolicyLastAttentionCredit("embedded", beta=1.0)(scored)
        >>> credit.shape, round(credit.sum().item(), 4), round(abs(credit[0, -1].item()), 4)
        (torch.Size([1, 5]), 2.0, 0.0)
    """

    name = "abc-d2"
    label = "ABC-D2"
    paper = "arXiv 2402.00782"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row of the last step, shape (batch, num_tokens)."""
        return attention_of_last_step(self._attention_map(scored), scored.completion_mask)
