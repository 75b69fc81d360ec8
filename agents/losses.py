"""The mathematics that PPO, RLOO and GRPO share: masked statistics, clipping, minibatches.

Each agent's own advantages and losses are in the agent's file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from .faults import check_gradient_norm
from .sharding import full

__all__ = [
    "Batch",
    "clip_gradients",
    "clipped_surrogate",
    "completion_mean",
    "is_clipped",
    "masked_mean",
    "whitening",
]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries of ``x`` where ``mask`` is True; a scalar."""
    # Select instead of multiplying with the mask: entries outside may be infinite or NaN.
    return x[mask].mean()


def completion_mean(x: Tensor, mask: Tensor, normalize_length: bool = True) -> Tensor:
    """Average over the tokens of each completion, or sum over them; then average over completions.

    With sums, every token counts the same, in long completions as in short ones. Liu et al. 2025
    (arXiv 2503.20783) also divide by a constant, which here is 1.

    Args:
        x: (batch, num_steps).
        mask: bool (batch, num_steps), at least one True in each row.
        normalize_length: Average over the tokens instead of summing.

    Returns:
        A scalar.
    """
    total = x.masked_fill(~mask, 0.0).sum(dim=1)  # (batch,)
    return (total / mask.sum(dim=1) if normalize_length else total).mean()


def whitening(x: Tensor) -> tuple[Tensor, Tensor]:
    """The shift and the scale that give mean 0 and variance 1: (x − shift) · scale.

    A small number keeps the scale finite where all entries are equal.

    Args:
        x: (num_entries,).

    Returns:
        Two scalars: the mean, and 1 / standard deviation.
    """
    mean = x.mean()
    variance = (x - mean).square().mean()
    return mean, (variance + 1e-8).rsqrt()


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_coef: float, clip_coef_high: float | None = None
) -> Tensor:
    """What PPO maximises (arXiv 1707.06347, equation 7): min(r·A, clip(r, 1 − ε, 1 + ε')·A).

    With ε' above ε, tokens that were unlikely have more room to become likely, which keeps the
    entropy up (Yu et al. 2025, "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
    arXiv 2503.14476, equation 10, "clip-higher").

    Args:
        log_ratio: log r, the log-probability of the actions under the updated policy minus that
            under the policy that sampled them, any shape.
        advantages: A, same shape.
        clip_coef: ε.
        clip_coef_high: ε'; None for ε.

    Returns:
        Same shape.
    """
    high = clip_coef if clip_coef_high is None else clip_coef_high
    # Clipped before exp: the ratio of a long completion may be infinite, and where the clip makes
    # the gradient 0, that of exp would make it 0 · ∞.
    upper = math.log1p(high)
    lower = math.log1p(-clip_coef) if clip_coef < 1 else -math.inf
    clipped = torch.where(advantages < 0, log_ratio.clamp(min=lower), log_ratio.clamp(max=upper))
    return advantages * clipped.exp()


def is_clipped(log_ratio: Tensor, clip_coef: float, clip_coef_high: float | None = None) -> Tensor:
    """Whether a ratio is outside the clipping range; bool, shape of ``log_ratio``.

    Both ends count, whatever the sign of the advantage; :func:`clipped_surrogate` clips at one end.
    """
    distance = log_ratio.exp() - 1
    high = clip_coef if clip_coef_high is None else clip_coef_high
    return (distance > high) | (distance < -clip_coef)


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, terms: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Scale gradients down, in place, so that their total norm is at most ``max_norm``.

    Args:
        parameters: Those without a gradient are passed over.
        max_norm: The norm that is left.
        terms: Parts of the loss by name, for the error.

    Returns:
        The norm before scaling, a scalar.

    Raises:
        NumericalError: If the norm is not finite.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = full(nn.utils.get_total_norm(gradients))
    check_gradient_norm(norm, terms or {})
    if norm > max_norm:  # Otherwise PyTorch would multiply every gradient by 1.
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@dataclass(frozen=True)
class Batch:
    """What an update needs of a rollout, laid out as in :mod:`textgym.agents.rollout`.

    A subclass adds the tensors of its agent's loss: one entry per step,
    (num_episodes, num_steps, ...), or one per episode, (num_episodes,).
    """

    input_ids: Tensor  # (num_episodes, num_tokens) int64
    attention_mask: Tensor  # (num_episodes, num_tokens) bool
    completion_mask: Tensor  # (num_episodes, num_steps) bool

    @property
    def texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and completion mask, as ``policy.evaluate`` takes them."""
        return self.input_ids, self.attention_mask, self.completion_mask

    def minibatches(
        self, num_epochs: int, minibatch_size: int | None, generator: torch.Generator
    ) -> Iterator[Self]:
        """All episodes in random order, a minibatch at a time, as many times as there are epochs.

        Args:
            num_epochs: Number of passes over the episodes, each in an order of its own.
            minibatch_size: Episodes per minibatch; the last one may be smaller. None takes all.
            generator: Draws the orders.
        """
        num_episodes = len(self.input_ids)
        for _ in range(num_epochs):
            order = torch.randperm(num_episodes, generator=generator)
            for indices in order.split(minibatch_size or num_episodes):
                yield self.minibatch(indices)

    def minibatch(self, indices: Tensor) -> Self:
        """Select episodes, and drop the columns that are padding in all of them."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        rows = {name: x[indices] for name, x in rows.items() if x is not None}
        padded_steps = int((~rows["completion_mask"].any(dim=0)).sum())
        padded_front = int(rows["attention_mask"].any(dim=0).int().argmax())
        tokens = slice(padded_front, self.input_ids.shape[1] - padded_steps)
        steps = slice(0, self.completion_mask.shape[1] - padded_steps)
        for name, values in rows.items():
            if values.ndim > 1:
                is_per_token = name in ("input_ids", "attention_mask")
                rows[name] = values[:, tokens if is_per_token else steps]
        return replace(self, **rows)
