"""The divergence between a policy and its reference: how it is estimated, how it is steered.

Tokens x are sampled from p, and q is the other distribution. Then log p(x) − log q(x) is an
unbiased estimate of KL(p‖q), summed over an episode's tokens that of the whole completions; the
agents penalise and report it. The estimate of :func:`kl_estimate` is unbiased too.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["AdaptiveKLController", "kl_estimate"]


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p‖q) at tokens sampled from p: r − 1 − log r with r = q/p.

    Unbiased, since r has the mean 1; never negative; and mostly of less variance than −log r
    (Schulman 2020, "Approximating KL Divergence", http://joschu.net/blog/kl-approx.html, "k3").

    Args:
        log_ratio: log q − log p of the sampled tokens, any shape.

    Returns:
        Shape of ``log_ratio``.
    """
    return log_ratio.exp() - 1 - log_ratio


class AdaptiveKLController:
    """Steers the weight of the KL penalty so that the KL approaches a target.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2: the weight is multiplied by
    1 + K·clip(KL / target − 1, −0.2, 0.2). There K is 0.1 per update; here it is
    ``num_episodes / horizon``, so that it does not depend on how the episodes are batched.

    Args:
        coef: The weight at the start.
        target: KL per episode in nats; None keeps the weight as it is.
        horizon: In episodes.
    """

    def __init__(self, coef: float, target: float | None, horizon: float) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight to the KL measured on so many episodes."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * num_episodes / self.horizon
