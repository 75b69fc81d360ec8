"""The policy's distribution over tokens: from logits to log-probabilities, entropy and a sample.

One distribution serves everywhere. The logits are divided by the temperature, the illegal actions
are masked out, and what remains is normalised; sampling, the policy's log-probabilities, the
reference policy's log-probabilities and the entropy all follow from it. Taking the
log-probabilities from the full softmax instead, while sampling from the masked one, would pay the
policy for moving probability onto the token that it is never allowed to choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "ActionRules",
    "action_logprobs",
    "masked_entropy",
    "masked_logprobs",
    "sample",
]

_CHUNK = 2**19
"""How many logits are looked at together: few enough to stay in a processor's cache."""
_CHUNK_OF_DEVICES = 2**26
"""The same on other devices, where only the memory counts."""


@dataclass(frozen=True)
class ActionRules:
    """What an environment lets an agent do.

    Args:
        num_actions: Size of the action space. Token ids from here on are illegal: the embedding
            matrices of many models are padded beyond the tokenizer's vocabulary.
        eos_token_id: The token that ends an episode, or None if there is none.
        min_new_tokens: EOS is illegal while fewer tokens than this have been generated.
        pad_token_id: Any id inside the vocabulary; it fills the columns that the mask hides.
    """

    num_actions: int
    eos_token_id: int | None = None
    min_new_tokens: int = 0
    pad_token_id: int = 0


def masked_logprobs(
    logits: Tensor, num_generated: Tensor, rules: ActionRules, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of all tokens, normalised over the legal ones.

    Args:
        logits: The language model's output, (..., vocab).
        num_generated: How many tokens the completion has so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits.

    Returns:
        float32 (..., vocab); minus infinity at illegal tokens.
    """
    return _tempered(logits, num_generated, rules, temperature).log_softmax(dim=-1)


def masked_entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of distributions in which some tokens are impossible.

    An impossible token contributes lim p log p = 0; multiplied out, 0 · (−∞) would be NaN, in the
    value and in the gradient.

    Args:
        logprobs: Normalised log-probabilities, minus infinity allowed, (..., vocab).

    Returns:
        (...)
    """
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(dim=-1)


def action_logprobs(
    logits: Tensor,
    actions: Tensor,
    num_generated: Tensor,
    rules: ActionRules,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen tokens, and the entropy of what they were chosen from.

    The same as gathering from :func:`masked_logprobs` and :func:`masked_entropy`, without ever
    holding either of them: forward and backward go through the logits once each, a cache-full at a
    time. Of vocabularies of tens of thousands, that is what takes the time and the memory.

    Args:
        logits: The language model's output, in any floating dtype, (..., vocab).
        actions: The chosen tokens, int64 (...).
        num_generated: How many tokens the completion has so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits.

    Returns:
        Log-probabilities and entropies in nats, both float32 (...). The log-probability of an
        illegal token is minus infinity. They can be differentiated once.
    """
    num_generated = num_generated.expand(actions.shape).reshape(-1)
    logprobs, entropy = _ActionLogprobs.apply(
        logits.flatten(0, -2), actions.reshape(-1), num_generated, rules, temperature
    )
    return logprobs.view(actions.shape), entropy.view(actions.shape)


def sample(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from categorical distributions, by one uniform number and the cumulative sum each.

    Args:
        logprobs: Normalised log-probabilities, minus infinity allowed, (batch, vocab), on the
            device of the generator.
        generator: Draws the numbers.

    Returns:
        int64 (batch,).
    """
    # Summed in double precision, in which no number below 1 times the sum rounds up to the sum; and
    # at an impossible token the sum does not grow, so none is ever met.
    cumulative = logprobs.exp().cumsum(dim=1, dtype=torch.float64)
    uniform = torch.rand(
        (len(logprobs), 1), dtype=torch.float64, generator=generator, device=logprobs.device
    )
    threshold = uniform * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


def _tempered(
    logits: Tensor, num_generated: Tensor, rules: ActionRules, temperature: float
) -> Tensor:
    """A float32 copy of the logits, divided by the temperature, minus infinity where illegal."""
    tempered = logits.to(torch.float32, copy=True)
    if temperature != 1:
        tempered /= temperature
    _fill_illegal(tempered, num_generated, rules, -torch.inf)
    return tempered


def _fill_illegal(x: Tensor, num_generated: Tensor, rules: ActionRules, value: float) -> None:
    """Write a value to the illegal tokens of (..., vocab), in place."""
    if rules.num_actions < x.shape[-1]:
        x[..., rules.num_actions :] = value
    if rules.eos_token_id is not None:
        eos = x[..., rules.eos_token_id]
        eos.masked_fill_(num_generated < rules.min_new_tokens, value)


class _ActionLogprobs(torch.autograd.Function):
    """What :func:`action_logprobs` does, on (num_tokens, vocab).

    With p the probabilities, a the action, H the entropy and τ the temperature,

        ∂ log p_a / ∂ logit_k = (1[k = a] − p_k) / τ
        ∂ H       / ∂ logit_k = −p_k · (log p_k + H) / τ
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        actions: Tensor,
        num_generated: Tensor,
        rules: ActionRules,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        logprobs = logits.new_empty(len(logits), dtype=torch.float32)
        entropy = torch.empty_like(logprobs)
        for rows in _chunks(logits):
            all_logprobs = masked_logprobs(logits[rows], num_generated[rows], rules, temperature)
            logprobs[rows] = all_logprobs.gather(1, actions[rows, None])[:, 0]
            p = all_logprobs.exp()
            entropy[rows] = p.mul_(_made_finite(all_logprobs)).sum(dim=1).neg_()
        ctx.save_for_backward(logits, actions, num_generated, entropy)
        ctx.rules, ctx.temperature = rules, temperature
        ctx.set_materialize_grads(False)  # What the loss leaves out costs nothing.
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprobs_grad: Tensor | None, entropy_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        logits, actions, num_generated, entropy = ctx.saved_tensors
        if logprobs_grad is None:
            logprobs_grad = torch.zeros_like(entropy)
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            tempered = _tempered(logits[rows], num_generated[rows], ctx.rules, ctx.temperature)
            p = tempered.softmax(dim=1)
            of_rows = p * -logprobs_grad[rows, None]
            of_rows.scatter_add_(1, actions[rows, None], logprobs_grad[rows, None])
            if entropy_grad is not None:
                surprise = _made_finite(tempered.log_softmax(dim=1)).add_(entropy[rows, None])
                of_rows -= p.mul_(surprise).mul_(entropy_grad[rows, None])
            _fill_illegal(of_rows, num_generated[rows], ctx.rules, 0.0)
            if ctx.temperature != 1:
                of_rows /= ctx.temperature
            grad[rows] = of_rows
        return grad, None, None, None, None


def _made_finite(logprobs: Tensor) -> Tensor:
    """Bring minus infinity to the least number, in place: 0 · (−∞) would be NaN."""
    return logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of (num_tokens, vocab) that are looked at together."""
    num_tokens, vocab_size = logits.shape
    size = _CHUNK if logits.device.type == "cpu" else _CHUNK_OF_DEVICES
    step = max(1, size // vocab_size)
    for start in range(0, num_tokens, step):
        yield slice(start, start + step)
