"""The policy's distribution over tokens: from logits to log-probabilities, entropy and a sample.

The same distribution is used everywhere: logits divided by the temperature, illegal actions masked
out, the rest normalised. Samples, entropy, and the log-probabilities of both policy and reference
policy come from it. Log-probabilities from the full softmax, with samples from the masked one,
would reward the policy for moving probability to a token that it can never choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from textgym.checks import check_whole_number

from .faults import check_probabilities

__all__ = [
    "ActionRules",
    "action_logprobs",
    "masked_entropy",
    "masked_logprobs",
    "sample",
    "state_kl",
]

_CHUNK = 2**19
"""Number of logits processed at once on a CPU: few enough to stay in its cache."""
_CHUNK_OF_DEVICES = 2**26
"""The same on other devices, where only memory matters."""


@dataclass(frozen=True)
class ActionRules:
    """Which actions are legal in an environment.

    Args:
        num_actions: Size of the action space. Higher token ids are illegal; many models have some,
            because their embedding matrix is padded beyond the tokenizer's vocabulary.
        eos_token_id: The token that ends an episode, or None if there is none.
        min_new_tokens: EOS is illegal while fewer tokens than this have been generated.
        pad_token_id: Fills masked columns; any id of the vocabulary.

    Raises:
        InvalidArgumentError: If a number is no whole one, or out of range.
    """

    num_actions: int
    eos_token_id: int | None = None
    min_new_tokens: int = 0
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        check_whole_number("num_actions", self.num_actions, 1)
        if self.eos_token_id is not None:
            check_whole_number("eos_token_id", self.eos_token_id, 0, self.num_actions - 1)
        check_whole_number("min_new_tokens", self.min_new_tokens, 0)
        check_whole_number("pad_token_id", self.pad_token_id, 0)


def masked_logprobs(
    logits: Tensor, num_generated: Tensor, rules: ActionRules, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of all tokens, normalised over the legal ones.

    Args:
        logits: The language model's output, (..., vocab).
        num_generated: Number of tokens of the completion so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits.

    Returns:
        float32 (..., vocab); minus infinity at illegal tokens.
    """
    return _tempered(logits, num_generated, rules, temperature).log_softmax(dim=-1)


def masked_entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of distributions in which some tokens are impossible.

    An impossible token contributes lim p log p = 0. Computed directly, 0 · (−∞) would be NaN, in
    the value and in the gradient.

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
    """Log-probabilities of chosen tokens, and the entropy of their distributions.

    Equals gathering from :func:`masked_logprobs`, and :func:`masked_entropy`, but never stores all
    log-probabilities. Forward and backward go through the logits once each, in pieces that fit
    into the cache. For vocabularies of tens of thousands of tokens, this saves most of the time
    and memory.

    Args:
        logits: The language model's output, in any floating dtype, (..., vocab).
        actions: The chosen tokens, int64 (...).
        num_generated: Number of tokens of the completion so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits.

    Returns:
        Log-probabilities and entropies in nats, both float32 (...), differentiable once. The
        log-probability of an illegal token is minus infinity.
    """
    num_generated = num_generated.expand(actions.shape).reshape(-1)
    logprobs, entropy = _ActionLogprobs.apply(
        logits.flatten(0, -2), actions.reshape(-1), num_generated, rules, temperature
    )
    return logprobs.view(actions.shape), entropy.view(actions.shape)


def state_kl(
    logits: Tensor,
    ref_logits: Tensor,
    num_generated: Tensor,
    rules: ActionRules,
    temperature: float = 1.0,
) -> Tensor:
    """The KL divergence from the reference policy in each state, a sum over the legal tokens.

    Like :func:`action_logprobs`, it goes through the logits in pieces, and stores no
    log-probabilities of whole vocabularies.

    Args:
        logits: The policy's output, in any floating dtype, (..., vocab).
        ref_logits: The reference policy's output in the same states, (..., vocab).
        num_generated: Number of tokens of the completion so far, integer, broadcastable to (...).
        rules: Which actions are legal.
        temperature: Divides the logits of both.

    Returns:
        Σ_a π(a) · (log π(a) − log π_ref(a)) in nats, float32 (...), differentiable once with
        respect to ``logits``. The reference policy gets no gradient.
    """
    shape = logits.shape[:-1]
    num_generated = num_generated.expand(shape).reshape(-1)
    kl: Tensor = _StateKL.apply(
        logits.flatten(0, -2), ref_logits.flatten(0, -2), num_generated, rules, temperature
    )
    return kl.view(shape)


def sample(logprobs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from categorical distributions, with one uniform number per row.

    Args:
        logprobs: Normalised log-probabilities, minus infinity allowed, (batch, vocab), on the
            device of the generator.
        generator: Draws the uniform numbers.

    Returns:
        int64 (batch,).

    Raises:
        NumericalError: If a log-probability is NaN.
    """
    # In double precision, a number below 1 times the sum never rounds up to the sum. And at an
    # impossible token the cumulative sum does not grow, so it is never chosen.
    cumulative = logprobs.exp().cumsum(dim=1, dtype=torch.float64)
    uniform = torch.rand(
        (len(logprobs), 1), dtype=torch.float64, generator=generator, device=logprobs.device
    )
    check_probabilities(cumulative[:, -1])
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
    """The work of :func:`action_logprobs`, on (num_tokens, vocab).

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
        ctx.set_materialize_grads(False)  # An output that the loss does not use costs nothing.
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


class _StateKL(torch.autograd.Function):
    """The work of :func:`state_kl`, on (num_tokens, vocab).

    With p the probabilities, d = log p − log p_ref and τ the temperature,

        ∂ KL / ∂ logit_k = p_k · (d_k − KL) / τ
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ref_logits: Tensor,
        num_generated: Tensor,
        rules: ActionRules,
        temperature: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, ref_logits, num_generated)
        ctx.rules, ctx.temperature = rules, temperature
        kl = logits.new_empty(len(logits), dtype=torch.float32)
        for rows in _chunks(logits):
            p, difference = _kl_terms(
                logits[rows], ref_logits[rows], num_generated[rows], rules, temperature
            )
            kl[rows] = p.mul_(difference).sum(dim=1)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, kl_grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, ref_logits, num_generated = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            p, difference = _kl_terms(
                logits[rows], ref_logits[rows], num_generated[rows], ctx.rules, ctx.temperature
            )
            difference -= (p * difference).sum(dim=1, keepdim=True)
            grad[rows] = p.mul_(difference).mul_(kl_grad[rows, None] / ctx.temperature)
        return grad, None, None, None, None


def _kl_terms(
    logits: Tensor,
    ref_logits: Tensor,
    num_generated: Tensor,
    rules: ActionRules,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Probabilities p, and log p − log p_ref, both (num_tokens, vocab) and 0 at illegal tokens."""
    logprobs = masked_logprobs(logits, num_generated, rules, temperature)
    ref_logprobs = masked_logprobs(ref_logits, num_generated, rules, temperature)
    return logprobs.exp(), _made_finite(logprobs).sub_(_made_finite(ref_logprobs))


def _made_finite(logprobs: Tensor) -> Tensor:
    """Replace minus infinity by the lowest finite number, in place: 0 · (−∞) would be NaN."""
    return logprobs.clamp_(min=torch.finfo(logprobs.dtype).min)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Rows of (num_tokens, vocab) that are processed at once."""
    num_tokens, vocab_size = logits.shape
    size = _CHUNK if logits.device.type == "cpu" else _CHUNK_OF_DEVICES
    step = max(1, size // vocab_size)
    for start in range(0, num_tokens, step):
        yield slice(start, start + step)
