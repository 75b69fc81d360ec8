"""How far an outside sampler is from the trained policy, and a warning where it is too far.

With the same weights, temperature and legal tokens, two engines differ by rounding alone. More than
that has a cause that can be mended. Importance weights hide it: the run goes on, with weights far
from 1 and many of them cut off.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from .kl import kl_estimate
from .losses import masked_mean

__all__ = ["MAX_SAMPLER_GAP", "MAX_SAMPLER_KL", "find_mismatch", "mismatch", "sound_mismatch"]

MAX_SAMPLER_KL = 0.01
"""The warning comes above this KL per token, in nats: about as far as one whole update of PPO may
take a policy before implementations with a limit stop it (``max_approx_kl``). A sampler that far
off is like one that missed an update."""

MAX_SAMPLER_GAP = 0.03
"""The warning also comes above this mean difference of log-probabilities, in nats: probabilities
that are 3% off. It finds what the estimate of the KL does not. That one is unbiased only if every
token of the policy can be sampled, which is not so with top-k or top-p.
``benchmarks/mismatch.py`` measured what lies above and below."""


def mismatch(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure how far the sampler was from the policy, on the tokens of a rollout.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the trained policy, before its
            update, (num_episodes, num_steps).
        sampler_logprobs: What the sampler said they were, (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).

    Returns:
        Two scalars for the log, means over tokens in nats: ``rollout/sampler_kl``, an estimate of
        KL(sampler ‖ policy) (k3, see :func:`textgym.agents.kl.kl_estimate`), and
        ``rollout/sampler_gap``, the absolute difference of the log-probabilities.
    """
    log_ratio = logprobs - sampler_logprobs
    return {
        "rollout/sampler_kl": masked_mean(kl_estimate(log_ratio), mask).item(),
        "rollout/sampler_gap": masked_mean(log_ratio.abs(), mask).item(),
    }


def find_mismatch(scalars: Mapping[str, float]) -> str | None:
    """Say that sampler and policy are too far apart, and why that may be; None if they are not.

    Args:
        scalars: What :func:`mismatch` returned.
    """
    kl, gap = scalars["rollout/sampler_kl"], scalars["rollout/sampler_gap"]
    if kl <= MAX_SAMPLER_KL and gap <= MAX_SAMPLER_GAP:
        return None
    return (
        f"the sampler is not the policy: its log-probabilities are {gap:.3g} nats per token off on "
        f"average (expected: at most {MAX_SAMPLER_GAP}), with an estimated KL of {kl:.3g} (at most "
        f"{MAX_SAMPLER_KL}). Likely causes: weights of an earlier iteration, or keys and values "
        "cached with them; another temperature; log-probabilities from before temperature and "
        "masks; top-k, top-p, min-p or penalties that are on; another dtype or quantisation"
    )


def sound_mismatch(
    scalars: Mapping[str, float], history: Sequence[Mapping[str, float]], warn: bool = True
) -> bool:
    """Whether sampler and policy are too far apart, with a warning if it is the first time.

    Args:
        scalars: What :func:`mismatch` returned.
        history: The rows of scalars of the iterations so far; ``rollout/sampler_alarm`` in a row
            says that there was a warning.
        warn: False only tells.
    """
    fault = find_mismatch(scalars)
    if warn and fault is not None and not any(row.get("rollout/sampler_alarm") for row in history):
        warnings.warn(f"iteration {len(history) + 1}: {fault}.", RuntimeWarning, stacklevel=6)
    return fault is not None
