"""The mathematics that PPO, RLOO and GRPO share: masked statistics, clipping, minibatches.

Each agent's own advantages and losses are in the agent's file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor, nn

__all__ = ["Batch", "clip_gradients", "clipped_surrogate", "masked_mean", "masked_whiten"]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries of ``x`` where ``mask`` is True; a scalar."""
    # Select instead of multiplying with the mask: entries outside may be infinite or NaN.
    return x[mask].mean()


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale ``x`` to mean 0 and variance 1 over the mask, and set it to 0 outside.

    Args:
        x: Any shape.
        mask: True at the entries that count, shape of ``x``.

    Returns:
        Shape of ``x``.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return ((x - mean) * (variance + 1e-8).rsqrt()).masked_fill(~mask, 0.0)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """What PPO maximises (arXiv 1707.06347, equation 7): min(r·A, clip(r, 1 − ε, 1 + ε)·A).

    Args:
        log_ratio: log r, the log-probability of the actions under the updated policy minus that
            under the policy that sampled them, any shape.
        advantages: A, same shape.
        clip_coef: ε.

    Returns:
        Same shape.
    """
    ratio = log_ratio.exp()
    return torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down, in place, so that their total norm is at most ``max_norm``.

    Returns:
        The norm before scaling, a scalar.

    Raises:
        RuntimeError: If the norm is not finite.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=True)
    if norm > max_norm:  # Otherwise PyTorch would multiply every gradient by 1.
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@dataclass(frozen=True)
class Batch:
    """What an update needs of a rollout, laid out as in :mod:`textgym.agents.rollout`.

    A subclass adds the tensors of its agent's loss: one number per step,
    (num_episodes, num_steps), or one per episode, (num_episodes,).
    """

    input_ids: Tensor  # (num_episodes, num_tokens) int64
    attention_mask: Tensor  # (num_episodes, num_tokens) bool
    completion_mask: Tensor  # (num_episodes, num_steps) bool

    @property
    def texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, attention mask and completion mask, as ``policy.evaluate`` takes them."""
        return self.input_ids, self.attention_mask, self.completion_mask

    def minibatch(self, indices: Tensor) -> Self:
        """Select episodes, and drop the columns that are padding in all of them."""
        rows = {field.name: getattr(self, field.name)[indices] for field in fields(self)}
        padded_steps = int((~rows["completion_mask"].any(dim=0)).sum())
        padded_front = int(rows["attention_mask"].any(dim=0).int().argmax())
        tokens = slice(padded_front, self.input_ids.shape[1] - padded_steps)
        steps = slice(0, self.completion_mask.shape[1] - padded_steps)
        for name, values in rows.items():
            if values.ndim == 2:
                is_per_token = name in ("input_ids", "attention_mask")
                rows[name] = values[:, tokens if is_per_token else steps]
        return type(self)(**rows)
