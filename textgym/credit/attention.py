"""Credit by attention: the reward model's own, its flow through the layers, and the policy's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from textgym.credit.base import WeightedCredit
from textgym.credit.registry import register_credit_assigner
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
    """Attention-Based Credit (ABC): shares by the reward model's own attention.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α the attention row at the position that the score
    is read from, cut to the completion and normalised (Chan et al., 2024, arXiv 2402.00782, who
    take the last layer and the mean over its heads). An encoder's row is that of the position it
    pools, or the mean of the rows where it pools by the mean. Where all attention lies on the
    prompt, the score stays on the last token.

    Cost: nothing beyond the forward pass that gives the score. Guarantee: at γ = 1 every
    completion keeps its return, so the ranking of policies and the optimum are unchanged; the
    gradient of methods that learn from the reward to go is not.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts, the last by default, or several, whose mean is
            taken.
        heads: How the heads are reduced: "mean", "max", or the number of one.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        Half of the attention is on the prompt; the shares of the completion are .1, .4, .1, .2, .2.

        >>> from textgym.credit._example import five_tokens
        >>> row = [0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]
        >>> AttentionCredit(beta=0.5)(five_tokens({AttentionRow(): row}))[0, 2:]
        tensor([0.1000, 0.4000, 0.1000, 0.2000, 1.2000])
    """

    name = "attention"
    paper = "arXiv 2402.00782"
    readouts = frozenset({AttentionRow()})

    def __init__(
        self, beta: float = 0.8, gamma: float = 1.0, *, layers: Layers = -1, heads: Heads = "mean"
    ) -> None:
        super().__init__(beta, gamma)
        self.layers, self.heads = layers, heads
        self._row = AttentionRow(layers, heads)
        self.readouts = frozenset({self._row})

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The attention row."""
        return scored[self._row]


def attention_rollout(maps: Tensor, pooling: Tensor) -> Tensor:
    """Attention of the pooled position, followed through all layers down to the input.

    Half of what a layer passes on comes through the residual connection: with A'_l = (A_l + I)/2,
    the result is p·A'_L···A'_1 (Abnar & Zuidema, 2020, arXiv 2005.00928).

    Args:
        maps: Attention maps of all layers, first to last, rows that sum to 1, shape
            (batch, num_layers, num_tokens, num_tokens).
        pooling: Which positions are pooled, p, shape (batch, num_tokens), rows that sum to 1.

    Returns:
        Shape (batch, num_tokens), rows that sum to 1.
    """
    flow = pooling
    for layer in maps.unbind(1)[::-1]:
        flow = (torch.einsum("bs,bst->bt", flow, layer) + flow) / 2
    return flow


@register_credit_assigner
class AttentionRolloutCredit(WeightedCredit):
    """Shares by attention that is followed through all layers.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α the pooled position's row of A'_L···A'_1, where
    A'_l = (A_l + I)/2 and A_l is the mean of the heads of layer l, cut to the completion and
    normalised (attention rollout, Abnar & Zuidema, 2020, arXiv 2005.00928).

    Cost: no further pass; every layer's map is computed besides the fused kernel, which takes
    memory and time in the square of the length. Guarantee: that of :class:`AttentionCredit`.

    Args:
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        One layer whose last position attends to the seven tokens as below. Half of the flow is the
        residual connection's, which stays at the last token.

        >>> from textgym.credit._example import five_tokens
        >>> layer = [[1.0 * (s == t) for t in range(7)] for s in range(6)]
        >>> layer += [[0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1]]
        >>> scored = five_tokens({LayerAttentionMaps(): [layer], Pooling(): [0.0] * 6 + [1.0]})
        >>> AttentionRolloutCredit(beta=0.9)(scored)[0, 2:]
        tensor([0.2000, 0.2000, 0.2000, 0.1000, 1.3000])
    """

    name = "attention-rollout"
    paper = "arXiv 2005.00928"
    readouts = frozenset({LayerAttentionMaps(), Pooling()})

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The rollout of the pooled position."""
        return attention_rollout(scored[LayerAttentionMaps()], scored[Pooling()])


def attention_received(attention_map: Tensor, completion_mask: Tensor) -> Tensor:
    """Mean attention that each token received in the steps that wrote the tokens after it.

    The step that writes a token attends from the position before it, so token t is seen from the
    positions t … T-1: the last token is seen by no step.

    Args:
        attention_map: [row, attends, attended to], shape (batch, num_tokens, num_tokens).
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row.

    Returns:
        Shape (batch, num_tokens), at completion tokens.
    """
    # A position writes the next token if that one belongs to the completion too.
    writes = torch.zeros_like(completion_mask)
    writes[:, :-1] = completion_mask[:, 1:]
    position = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    sees = writes[:, :, None] & (position[:, None] >= position) & completion_mask[:, None, :]
    return (attention_map * sees).sum(1) / sees.sum(1).clamp(min=1)


def attention_of_last_step(attention_map: Tensor, completion_mask: Tensor) -> Tensor:
    """Attention row of the position that wrote the last token, the one before it.

    Args:
        attention_map: [row, attends, attended to], shape (batch, num_tokens, num_tokens).
        completion_mask: Shape (batch, num_tokens), bool, one run of True per row, after a prompt.

    Returns:
        Shape (batch, num_tokens).
    """
    position = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    last = torch.where(completion_mask, position, -1).max(dim=1).values
    return attention_map[torch.arange(len(last), device=last.device), (last - 1).clamp(min=0)]


class _PolicyCredit(WeightedCredit):
    """Shares by the attention of a causal language model that reads the finished completion."""

    cost = "1 forward pass of the policy"

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        layers: Layers = -1,
        heads: Heads = "mean",
    ) -> None:
        super().__init__(beta, gamma)
        row = AttentionRow(layers, heads)  # checks its arguments
        self.policy, self.layers, self.heads = policy, row.layers, row.heads
        self._model = load_language_model(policy)
        num_layers = int(self._model.config.num_hidden_layers)
        if not all(-num_layers <= i < num_layers for i in layer_indices(layers)):
            raise InvalidArgumentError("layers", layers, f"the policy has {num_layers} layers")
        self._recorder: AttentionRecorder | None = None

    def forward_passes(self, num_tokens: int) -> int:
        """One, of the policy."""
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
                f"it knows {num_embeddings} tokens, and the completions have others: pass a model "
                "on the tokenizer of the environment",
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
    """ABC-D: shares by the attention that the policy paid to a token while it wrote the rest.

    credit_t = β·α_t·R + (1-β)·R·1[t = T], with α_t the mean, over the steps that wrote the tokens
    t+1 … T, of the policy's attention to token t, normalised (Chan et al., 2024, arXiv
    2402.00782). The credit lands on the token that was attended to. No step attends to the last
    token, whose α is 0; a completion of one token gets its score there.

    Cost: one forward pass of the policy over the finished completion. Guarantee: that of
    :class:`AttentionCredit`.

    Args:
        policy: The policy: ``"embedded"``, a folder, a hub id, or the model that is being trained,
            whose attention then changes as it learns.
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: The layer whose attention counts, the last by default, or several, whose mean is
            taken.
        heads: How the heads are reduced: "mean", "max", or the number of one.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the policy cannot be loaded.

    Example:
        A policy that attends to the latest token and the one before it, half each. The first token
        of the completion gets .5 in two of the four steps that follow it, the second in two of
        three, the third in two of two, the fourth in its only one: weights in the ratio of 3, 4, 6
        and 6.

        >>> from textgym.credit._example import five_tokens
        >>> from textgym.credit.base import shares
        >>> mask = five_tokens().completion_mask
        >>> steps = torch.tensor([[[0.5 * (s - t in (0, 1)) for t in range(7)] for s in range(7)]])
        >>> shares(attention_received(steps, mask), mask)[0, 2:] * 19
        tensor([3., 4., 6., 6., 0.])
    """

    name = "policy-attention"
    paper = "arXiv 2402.00782"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """Mean attention received."""
        return attention_received(self._attention_map(scored), scored.completion_mask)


@register_credit_assigner
class PolicyLastAttentionCredit(_PolicyCredit):
    """ABC-D2: shares by the attention of the policy's last step.

    As :class:`PolicyAttentionCredit`, with α the attention row of the position that wrote the last
    token (Chan et al., 2024, arXiv 2402.00782).

    Cost: one forward pass of the policy over the finished completion. Guarantee: that of
    :class:`AttentionCredit`.

    Args:
        policy: As for :class:`PolicyAttentionCredit`.
        beta: Share of the score that is redistributed, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        layers: As for :class:`PolicyAttentionCredit`.
        heads: As for :class:`PolicyAttentionCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range or the policy cannot be loaded.

    Example:
        The last token is written from the position before it, which attends to the prompt with
        weight .2 and to the first four tokens of the completion as below.

        >>> from textgym.credit._example import five_tokens
        >>> from textgym.credit.base import shares
        >>> mask = five_tokens().completion_mask
        >>> steps = torch.zeros(1, 7, 7)
        >>> steps[0, 5] = torch.tensor([0.1, 0.1, 0.4, 0.2, 0.1, 0.1, 0.0])
        >>> shares(attention_of_last_step(steps, mask), mask)[0, 2:]
        tensor([0.5000, 0.2500, 0.1250, 0.1250, 0.0000])
    """

    name = "policy-attention-last"
    paper = "arXiv 2402.00782"

    def weights(self, scored: ScoredCompletions) -> Tensor:
        """The row of the last step."""
        return attention_of_last_step(self._attention_map(scored), scored.completion_mask)
