"""The KL divergence between policy and reference policy: estimates, and what a token pays for it.

Let the tokens x be sampled from p, and let q be the other distribution. Then log p(x) − log q(x) is
an unbiased estimate of KL(p‖q). Summed over the tokens of an episode, it estimates the KL of whole
completions. The divergence of each state is known exactly, by a sum over the vocabulary
(:func:`textgym.agents.distribution.state_kl`). Summed over the states of sampled episodes, it is an
unbiased estimate with less variance, and never negative (Amini, Vieira & Cotterell 2025, "Better
Estimation of the Kullback–Leibler Divergence Between Language Models", arXiv 2504.10637).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["KL_ESTIMATES", "KL_PENALTIES", "kl_estimate", "penalty_per_token"]


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p‖q) at tokens sampled from p: r − 1 − log r with r = q/p.

    It is unbiased, since r has mean 1, it is never negative, and it usually has less variance than
    −log r (Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html,
    "k3").

    Args:
        log_ratio: log q − log p of the sampled tokens, any shape.

    Returns:
        Shape of ``log_ratio``.
    """
    return log_ratio.exp() - 1 - log_ratio


KL_ESTIMATES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: -log_ratio,
    "k2": lambda log_ratio: 0.5 * log_ratio.square(),
    "k3": kl_estimate,
}
"""Schulman's estimates of KL(p‖q) by name, functions of log r = log q − log p. k1 and k3 are
unbiased; k2 is biased, by little where p and q are close."""

KL_PENALTIES = (*KL_ESTIMATES, "exact")
"""What a policy may pay for leaving its reference policy, by name; see
:func:`penalty_per_token`."""


def penalty_per_token(
    name: str, logprobs: Tensor, ref_logprobs: Tensor, kl: Tensor, mask: Tensor, gamma: float = 1.0
) -> Tensor:
    """What each token pays for leaving the reference policy, before its weight.

    - ``"k1"``: log π − log π_ref of the token. The policy gradient of this penalty is that of the
      KL divergence of whole completions (Ziegler et al. 2019, arXiv 1909.08593, equation 2).
    - ``"exact"``: γ times the KL divergence of the *next* state, 0 at the last token. A token
      cannot change the divergence of the state in which it is chosen; the policy can, so the mean
      of the divergence over all states is added to the loss. Both parts together have the
      expectation of k1, without its noise from the chosen token (Amini et al. 2025,
      arXiv 2504.10637, on the gradient).
    - ``"k2"``, ``"k3"``: never negative, but the policy gradient of such a penalty is not that of
      the divergence: it lacks the derivative of the estimate itself. For k3 it is the gradient of
      KL(π‖π_ref) − KL(π_ref‖π) in each state. Close to the reference policy, where both are equal,
      it hardly pulls.

    Args:
        name: One of :data:`KL_PENALTIES`.
        logprobs: Log-probabilities of the chosen tokens, (num_episodes, num_steps).
        ref_logprobs: The same under the reference policy, (num_episodes, num_steps).
        kl: The exact divergence of the state in which each token was chosen,
            (num_episodes, num_steps); 0 outside the mask.
        mask: bool (num_episodes, num_steps).
        gamma: Discount.

    Returns:
        (num_episodes, num_steps), 0 outside the mask.
    """
    if name == "exact":
        next_kl = torch.cat([kl[:, 1:], torch.zeros_like(kl[:, :1])], dim=1)
        return gamma * next_kl
    return KL_ESTIMATES[name](ref_logprobs - logprobs).masked_fill(~mask, 0.0)
