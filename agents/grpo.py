"""Group relative policy optimisation (GRPO): read it from top to bottom.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", arXiv 2402.03300. Hyperparameters, mathematics, agent; what it shares with RLOO is in
groups.py, the loop around both in base.py.

Two of its normalisations bias the gradient (Liu et al. 2025, "Understanding R1-Zero-Like Training:
A Critical Perspective", arXiv 2503.20783). Dividing by the standard deviation of a group gives
prompts on which the completions hardly differ as much weight as those on which they differ most.
Dividing by the length of a completion pushes each token of a bad one the less, the longer it is.
Both are on by default, since that is what GRPO is; ``normalize_std=False, normalize_length=False``
is the variant that the authors call Dr. GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .groups import GroupAgent, GroupBatch, GroupConfig
from .kl import kl_estimate
from .policy import Evaluation
from .ppo import clipped_surrogate, masked_mean

__all__ = [
    "GRPO",
    "GRPOConfig",
    "completion_mean",
    "group_relative_advantages",
    "grpo_loss",
]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """Hyperparameters of :class:`GRPO`, besides those of every agent with groups.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    normalize_std: bool = True
    """Divide the advantages of a group by the standard deviation of its returns."""
    normalize_length: bool = True
    """Divide what a completion adds to the loss by its number of tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flag("normalize_std")
        self._check_flag("normalize_length")


# --- Mathematics ----------------------------------------------------------------------------------


def group_relative_advantages(
    returns: Tensor, group_size: int, normalize_std: bool = True
) -> Tensor:
    """Each return minus the mean of its group, in units of its standard deviation.

    The standard deviation is that of the group as a population. A group whose returns differ by no
    more than rounding gets advantages near 0, not ±1: that is what is added to the divisor for.

    Args:
        returns: (num_groups · group_size,), the members of a group one after the other.
        group_size: At least 2.
        normalize_std: False leaves the division out.

    Returns:
        Shape of ``returns``.

    Example:
        >>> returns = torch.tensor([1.0, 3.0, 5.0, 5.0])
        >>> group_relative_advantages(returns, group_size=2)
        tensor([-0.9999,  0.9999,  0.0000,  0.0000])
        >>> group_relative_advantages(returns, group_size=2, normalize_std=False)
        tensor([-1.,  1.,  0.,  0.])
    """
    groups = returns.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if normalize_std:
        advantages = advantages / (groups.std(dim=1, correction=0, keepdim=True) + 1e-4)
    return advantages.flatten()


def completion_mean(x: Tensor, mask: Tensor, normalize_length: bool = True) -> Tensor:
    """Mean over completions of what their tokens add up to, or of what they are on average.

    Without the division by the length every token counts the same, in long completions as in short
    ones. Liu et al. 2025 then divide by a constant, which here is 1.

    Args:
        x: (batch, num_steps).
        mask: bool (batch, num_steps), at least one True in each row.
        normalize_length: Take the average, not the sum.

    Returns:
        A scalar.
    """
    total = x.masked_fill(~mask, 0.0).sum(dim=1)  # (batch,)
    return (total / mask.sum(dim=1) if normalize_length else total).mean()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_coef: float,
    normalize_length: bool = True,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate and the KL penalty of GRPO (Shao et al. 2024, arXiv 2402.03300).

    The penalty is r − 1 − log r with r = π_ref/π at each token. Its value estimates KL(π‖π_ref)
    without bias, but its gradient does not: at the policy that sampled, in each state, the mean of
    the gradient is that of KL(π_ref‖π) (on such losses see Tang & Munos 2025, arXiv 2506.09477).
    Both pull towards the reference policy, but this one hardly punishes tokens that have become
    much more probable than they were: there r is near 0, and the gradient no larger than that of
    log π.

    Args:
        logprobs: Of the chosen tokens under the policy that is updated, (batch, num_steps).
        old_logprobs: Under the policy that sampled them, (batch, num_steps).
        ref_logprobs: Under the reference policy, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.
        normalize_length: See :func:`completion_mean`.

    Returns:
        The surrogate, negated, and the penalty without its weight, two scalars.
    """
    surrogate = clipped_surrogate(logprobs - old_logprobs, advantages, clip_coef)
    penalty = kl_estimate(ref_logprobs - logprobs)
    return (
        completion_mean(-surrogate, mask, normalize_length),
        completion_mean(penalty, mask, normalize_length),
    )


# --- Agent ----------------------------------------------------------------------------------------


class GRPO(GroupAgent):
    """Group relative policy optimisation: PPO's loss, with advantages that the group gives.

    The advantage of a completion is what ``step`` paid for it minus the mean of its group, divided
    by the standard deviation of the group. All of its tokens get it alike, or by their credit
    (``credit_weights``). The KL penalty is a term of the loss, per token, and not of the reward; so
    ``kl_coef`` is on another scale than that of PPO and RLOO.

    The scalars are those of :class:`~textgym.agents.groups.GroupAgent`.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and stays as it is.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. Its tokenizer must be the policy's.
        **hyperparameters: The fields of :class:`GRPOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "GRPO"
    config_class = GRPOConfig
    config: GRPOConfig

    def _advantages(self, returns: Tensor, kl: Tensor) -> Tensor:
        return group_relative_advantages(returns, self.config.group_size, self.config.normalize_std)

    def _loss(self, batch: GroupBatch, new: Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        mask, clip_coef = batch.completion_mask, self.config.clip_coef
        surrogate, penalty = grpo_loss(
            new.logprobs,
            batch.logprobs,
            batch.ref_logprobs,
            batch.advantages[:, None] * batch.weights,
            mask,
            clip_coef,
            self.config.normalize_length,
        )
        clipped = ((new.logprobs - batch.logprobs).detach().exp() - 1).abs() > clip_coef
        return surrogate + self.kl_controller.coef * penalty, {
            "train/policy_loss": surrogate,
            "train/kl_loss": penalty,
            "train/clip_fraction": masked_mean(clipped.float(), mask),
        }
