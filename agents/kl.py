"""The KL divergence between policy and reference policy: its estimate and its control.

Let the tokens x be sampled from p, and let q be the other distribution. Then log p(x) − log q(x) is
an unbiased estimate of KL(p‖q). Summed over the tokens of an episode, it estimates the KL of whole
completions; this is what the agents penalise and report. :func:`kl_estimate` is another unbiased
estimate.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["AdaptiveKLController", "kl_estimate"]


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


class AdaptiveKLController:
    """Adapts the weight of the KL penalty so that the KL approaches a target.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2: each update multiplies the weight by
    1 + K·clip(KL / target − 1, −0.2, 0.2). The paper uses K = 0.1. Here K is
    ``num_episodes / horizon``, so the speed does not depend on the number of episodes per update.

    Args:
        coef: The initial weight.
        target: KL per episode in nats; None keeps the weight fixed.
        horizon: Number of episodes in which the weight can rise or fall by at most about a fifth.
    """

    def __init__(self, coef: float, target: float | None, horizon: float) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight to the mean KL per episode, measured on ``num_episodes`` episodes."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * num_episodes / self.horizon
