"""Importance weights, for completions that another engine than the trained policy sampled.

Two engines give the same weights of a model slightly different probabilities: other kernels, other
precision, another order of summation. So completions that an engine with the distribution μ sampled
are not quite from the policy π that is trained on them, and the policy gradient is biased. With the
weight w = π/μ of what was sampled it is not: E_μ[w·f] = E_π[f]. A weight may be large, and so may
the variance; cutting it off at a cap bounds both, at the price of a bias where it is cut (Ionides
2008, "Truncated Importance Sampling", Journal of Computational and Graphical Statistics 17(2)).

Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
(https://fengyao.notion.site/off-policy-rl), multiply the surrogate of each token by its truncated
weight. π is the policy before the update; the probability ratio of PPO, which starts at 1, measures
the update alone. Since a weight is not negative, weighing the surrogate is the same as weighing the
advantage, which is what :func:`weighted_advantages` does.

A weight per token corrects which token was chosen in a state, but not which states were reached:
that would take the product of the weights of all tokens before. The difference is small while the
engines are close. For a loss on whole completions, the weight is that of the whole completion, and
corrects both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sequence_weights", "token_weights", "weighted_advantages"]


@torch.no_grad()
def token_weights(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Truncated importance weights of tokens: w_t = min(cap, π(y_t) / μ(y_t)).

    Args:
        logprobs: Log-probabilities of the sampled tokens under the trained policy, before its
            update, (num_episodes, num_steps).
        sampler_logprobs: The same under the distribution that they were sampled from,
            (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).
        cap: The largest weight.

    Returns:
        (num_episodes, num_steps), 0 outside the mask, without gradient.

    Example:
        >>> logprobs = torch.tensor([[0.5, 0.3, 0.9]]).log()
        >>> sampler_logprobs = torch.tensor([[0.25, 0.6, 0.3]]).log()
        >>> token_weights(logprobs, sampler_logprobs, torch.tensor([[True] * 3]), cap=2.5)
        tensor([[2.0000, 0.5000, 2.5000]])
    """
    return (logprobs - sampler_logprobs).exp().clamp(max=cap).masked_fill(~mask, 0.0)


@torch.no_grad()
def sequence_weights(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float
) -> Tensor:
    """Truncated importance weights of whole completions: w = min(cap, Π_t π(y_t) / μ(y_t)).

    Args:
        logprobs: Log-probabilities of the sampled tokens under the trained policy, before its
            update, (num_episodes, num_steps).
        sampler_logprobs: The same under the distribution that they were sampled from,
            (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).
        cap: The largest weight.

    Returns:
        (num_episodes,), without gradient.

    Example:
        >>> logprobs = torch.tensor([[0.5, 0.3], [0.9, 0.9]]).log()
        >>> sampler_logprobs = torch.tensor([[0.25, 0.6], [0.3, 0.9]]).log()
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> sequence_weights(logprobs, sampler_logprobs, mask, cap=2.5)
        tensor([1.0000, 2.5000])
    """
    log_ratio = (logprobs - sampler_logprobs).masked_fill(~mask, 0.0)
    return log_ratio.sum(dim=1).exp().clamp(max=cap)


def weighted_advantages(
    advantages: Tensor, logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float
) -> tuple[Tensor, dict[str, float]]:
    """Multiply advantages by truncated importance weights, of tokens or of whole completions.

    Args:
        advantages: Of tokens, (num_episodes, num_steps), or of completions, (num_episodes,). The
            weights are those of the same.
        logprobs: Log-probabilities of the sampled tokens under the trained policy, before its
            update, (num_episodes, num_steps).
        sampler_logprobs: The same under the distribution that they were sampled from,
            (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).
        cap: The largest weight.

    Returns:
        Shape of ``advantages``; and scalars for the log: ``rollout/importance_weight``, the mean
        weight, and ``rollout/importance_capped``, the share that was cut off.
    """
    is_of_completions = advantages.ndim == 1
    weigh = sequence_weights if is_of_completions else token_weights
    ratios = weigh(logprobs, sampler_logprobs, mask, math.inf)
    weights = ratios.clamp(max=cap)
    counted = slice(None) if is_of_completions else mask
    scalars = {
        "rollout/importance_weight": weights[counted].mean().item(),
        "rollout/importance_capped": (ratios[counted] > cap).float().mean().item(),
    }
    return advantages * weights, scalars
