"""REINFORCE with a leave-one-out baseline (RLOO): read it from top to bottom.

Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from
Human Feedback in LLMs", arXiv 2402.14740, with the estimator of Kool et al. 2019, "Buy 4 REINFORCE
Samples, Get a Baseline for Free!". A whole completion is one action. Hyperparameters, mathematics,
agent; what it shares with GRPO is in groups.py, the loop around both in base.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .groups import GroupAgent, GroupBatch, GroupConfig
from .policy import Evaluation
from .ppo import clipped_surrogate

__all__ = ["RLOO", "RLOOConfig", "leave_one_out_advantages", "rloo_loss", "sequence_log_ratio"]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """Hyperparameters of :class:`RLOO`, besides those of every agent with groups."""


# --- Mathematics ----------------------------------------------------------------------------------


def leave_one_out_advantages(returns: Tensor, group_size: int) -> Tensor:
    """Each return minus the mean of the others of its group.

    A baseline may depend on all but the completion that it judges (Kool et al. 2019), so these
    advantages leave the policy gradient unbiased. They are k/(k − 1) times what the mean of the
    whole group would give, with k the size of the group, and sum to 0 in each group.

    Args:
        returns: (num_groups · group_size,), the members of a group one after the other.
        group_size: k, at least 2.

    Returns:
        Shape of ``returns``.

    Example:
        >>> leave_one_out_advantages(torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0]), group_size=3)
        tensor([-3.0000, -1.5000,  4.5000,  0.0000,  0.0000,  0.0000])
    """
    groups = returns.view(-1, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def sequence_log_ratio(
    logprobs: Tensor, old_logprobs: Tensor, weights: Tensor, mask: Tensor
) -> Tensor:
    """Logarithm of the probability ratio of whole completions, a (weighted) sum over tokens.

    Args:
        logprobs: Of the chosen tokens under the policy that is updated, (batch, num_steps).
        old_logprobs: Under the policy that sampled them, (batch, num_steps).
        weights: Of the tokens, (batch, num_steps); with all of them 1 it is the ratio proper.
        mask: bool (batch, num_steps).

    Returns:
        (batch,)
    """
    return (weights * (logprobs - old_logprobs)).masked_fill(~mask, 0.0).sum(dim=1)


def rloo_loss(log_ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """The clipped surrogate of whole completions, negated, as a mean over completions.

    Its gradient at the policy that sampled them is that of REINFORCE, −A·Σ_t w_t·∇ log π(y_t),
    with weights w_t = 1 unless credit sets them. The paper takes this step alone; further ones on
    the same completions need the ratio and the clip.

    Args:
        log_ratio: See :func:`sequence_log_ratio`, (batch,).
        advantages: (batch,).
        clip_coef: ε.

    Returns:
        A scalar.
    """
    return -clipped_surrogate(log_ratio, advantages, clip_coef).mean()


# --- Agent ----------------------------------------------------------------------------------------


class RLOO(GroupAgent):
    """REINFORCE leave-one-out: a completion is judged by the mean of the others of its prompt.

    The return of an episode is what ``step`` paid minus ``kl_coef`` times the log-probability ratio
    of policy and reference policy over the whole completion: the KL penalty is part of the reward,
    as in PPO, but of one number per completion instead of one per token. Its advantage is this
    return minus the mean of the others of the group, and all tokens share it alike, or by their
    credit (``credit_weights``; the penalty is shared out with the rest).

    By default every iteration is one step along the unbiased gradient of the paper. With more
    epochs or smaller minibatches, the clipped ratio of the whole completion keeps the further steps
    close to the policy that sampled.

    The scalars are those of :class:`~textgym.agents.groups.GroupAgent`.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and stays as it is.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. Its tokenizer must be the policy's.
        **hyperparameters: The fields of :class:`RLOOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "RLOO"
    config_class = RLOOConfig
    config: RLOOConfig

    def _advantages(self, returns: Tensor, kl: Tensor) -> Tensor:
        penalised = returns - self.kl_controller.coef * kl
        return leave_one_out_advantages(penalised, self.config.group_size)

    def _loss(self, batch: GroupBatch, new: Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = sequence_log_ratio(
            new.logprobs, batch.logprobs, batch.weights, batch.completion_mask
        )
        loss = rloo_loss(log_ratio, batch.advantages, self.config.clip_coef)
        clipped = (log_ratio.detach().exp() - 1).abs() > self.config.clip_coef
        return loss, {"train/policy_loss": loss, "train/clip_fraction": clipped.float().mean()}
