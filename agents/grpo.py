"""Group relative policy optimisation (GRPO): read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then ``GRPO._iterate``: one iteration, from the
rollout to the last optimizer step. What it shares with RLOO is in groups.py, the loop of iterations
in agent.py.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", arXiv 2402.03300. Two of its normalisations bias the gradient (Liu et al. 2025,
"Understanding R1-Zero-Like Training: A Critical Perspective", arXiv 2503.20783). Dividing by the
standard deviation of a group gives prompts whose completions hardly differ as much weight as those
whose completions differ most. Dividing by the length of a completion pushes each token of a bad
completion less, the longer it is. Both are on by default, as in the original. With
``normalize_std=False, normalize_length=False`` it is the variant that the authors call Dr. GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .groups import GroupAgent, GroupBatch, GroupConfig, credit_weights
from .kl import kl_estimate
from .losses import clip_gradients, clipped_surrogate, completion_mean, is_clipped, masked_mean
from .metrics import ScalarMeans
from .returns import mean_of_others, returns_to_go

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = [
    "GRPO",
    "GRPOConfig",
    "group_relative_advantages",
    "group_relative_token_advantages",
    "grpo_loss",
]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupConfig):
    """Hyperparameters of :class:`GRPO`, in addition to those of all agents with groups.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    learning_rate: float = 3e-4
    """Learning rate of AdamW, after the warm-up; see :class:`~textgym.agents.AgentConfig`."""
    num_epochs: int = 1
    """Passes over the episodes of an iteration."""
    minibatch_size: int | None = 4
    """Episodes per gradient step; None takes all episodes of the iteration."""
    kl_coef: float = 0.04
    """Weight of the KL penalty in the loss; the initial weight if ``kl_target`` is set, of which
    "pi" starts at 1/e."""
    normalize_std: bool = True
    """Divide the advantages of a group by the standard deviation of its returns."""
    normalize_length: bool = True
    """Divide each completion's contribution to the loss by its number of tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flag("normalize_std")
        self._check_flag("normalize_length")


# --- Mathematics ----------------------------------------------------------------------------------


def group_relative_advantages(
    returns: Tensor, group_size: int, normalize_std: bool = True
) -> Tensor:
    """Each return minus the mean of its group, in units of its standard deviation.

    It is the population standard deviation, plus 1e-4: so if the returns of a group differ only by
    rounding, the advantages are near 0 instead of ±1.

    Args:
        returns: (num_groups · group_size,), the members of a group one after the other.
        group_size: At least 2.
        normalize_std: False skips the division.

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
        advantages = advantages / _group_std(groups)
    return advantages.flatten()


def group_relative_token_advantages(
    credit: Tensor, mask: Tensor, group_size: int, normalize_std: bool = True
) -> Tensor:
    """The credit from each token to the end minus the mean of its group at the same step.

    A completion that has ended before that step counts with the credit of its last token. The unit
    is the standard deviation of the whole returns, as for completions. So credit that is all on the
    last token gives every token the advantage of its completion.

    Args:
        credit: (num_groups · group_size, num_steps), the members of a group one after the other.
        mask: bool, same shape.
        group_size: At least 2.
        normalize_std: False skips the division.

    Returns:
        Same shape, 0 outside the mask.
    """
    to_go = returns_to_go(credit, mask)
    # The group's mean includes the completion itself: x − mean = (x − mean of others) · (k − 1)/k.
    others = mean_of_others(to_go, mask, group_size)
    advantages = (to_go - others) * (group_size - 1) / group_size
    if normalize_std:
        std = _group_std(to_go[:, 0].view(-1, group_size))  # (num_groups, 1)
        advantages = advantages / std.repeat_interleave(group_size, dim=0)
    return advantages


def _group_std(groups: Tensor) -> Tensor:
    """Standard deviation of each row, a little larger so that it is never 0; (num_groups, 1)."""
    return groups.std(dim=1, correction=0, keepdim=True) + 1e-4


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_coef: float,
    normalize_length: bool = True,
    clip_coef_high: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate and the KL penalty of GRPO (Shao et al. 2024, arXiv 2402.03300).

    The penalty at each token is r − 1 − log r with r = π_ref/π. Its value is an unbiased estimate
    of KL(π‖π_ref), but its gradient is not: at the policy that sampled, the expected gradient in
    each state is that of KL(π_ref‖π) (see Tang & Munos 2025, arXiv 2506.09477, on such losses).
    Both pull towards the reference policy, but this one barely punishes tokens that have become
    much more probable: there r is near 0, and the gradient no larger than that of log π.

    Args:
        logprobs: Log-probabilities of the chosen tokens under the updated policy,
            (batch, num_steps).
        old_logprobs: The same under the policy that sampled them, (batch, num_steps).
        ref_logprobs: The same under the reference policy, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.
        normalize_length: See :func:`textgym.agents.losses.completion_mean`.
        clip_coef_high: ε above 1; None for the same.

    Returns:
        Two scalars: the negative surrogate, and the penalty without its weight.
    """
    surrogate = clipped_surrogate(logprobs - old_logprobs, advantages, clip_coef, clip_coef_high)
    penalty = kl_estimate(ref_logprobs - logprobs)
    return (
        completion_mean(-surrogate, mask, normalize_length),
        completion_mean(penalty, mask, normalize_length),
    )


# --- Agent ----------------------------------------------------------------------------------------


class GRPO(GroupAgent):
    """Group relative policy optimisation: PPO's loss with advantages from a group of completions.

    The advantage of a completion is what ``step`` paid for it minus the mean of its group, divided
    by the standard deviation of the group. All of its tokens get the same advantage, or weigh it by
    their credit (``credit_weights``). With ``advantages="token"`` each token gets its own, from the
    credit from itself to the end. The KL penalty is a term of the loss, per token, and not part
    of the reward; so ``kl_coef`` has another scale than in PPO and RLOO.

    The scalars are those of :class:`~textgym.agents.groups.GroupAgent`.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and not changed. Parameters with ``requires_grad=False`` stay frozen.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. It must have the policy's vocabulary.
        **hyperparameters: The fields of :class:`GRPOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "GRPO"
    config_class = GRPOConfig
    config: GRPOConfig

    def _iterate(self, env: VectorEnv) -> dict[str, float]:
        """Run one iteration, from the rollout to the last optimizer step; returns its scalars."""
        config, kl_coef, processes = self.config, self.kl_controller.coef, self.processes
        num_episodes = config.episodes_per_iteration

        # Rollout: whole episodes, in groups that start from the same prompt.
        rollout = self._collect_groups(env)
        mask = rollout.completion_mask  # (num_episodes, num_steps)
        self.num_timesteps += int(processes.total(mask.sum()))

        # Log-probabilities, not those of the rollout: in bfloat16 the forward with a cache rounds
        # differently from the one that is trained, and the first probability ratio must be 1.
        with torch.no_grad():
            ref_logits = self.ref_policy.completion_logits(*rollout.texts)
            old = self.policy.compare(*rollout.texts, ref_logits)
        del ref_logits  # They may take more memory than a minibatch.

        # Advantages, and weights of tokens, (num_episodes, num_steps).
        if config.advantages == "token":
            advantages = group_relative_token_advantages(
                rollout.credit, mask, config.group_size, config.normalize_std
            )
        else:
            advantages = group_relative_advantages(
                rollout.env_returns, config.group_size, config.normalize_std
            )[:, None].expand_as(mask)
        advantages, about_sampler = self._importance_weighted(advantages, rollout, old.logprobs)
        weights = credit_weights(rollout.credit, mask, config.credit_weights)

        # Update: epochs of minibatches of whole episodes.
        batch = GroupBatch(*rollout.texts, old.logprobs, old.ref_logprobs, advantages, weights)
        means = ScalarMeans()
        for mb in batch.minibatches(
            config.num_epochs, self._own_minibatch_size, self._generators["minibatches"]
        ):
            new = self.policy.evaluate(*mb.texts)
            pg_loss, kl_loss = grpo_loss(
                new.logprobs,
                mb.logprobs,
                mb.ref_logprobs,
                mb.advantages * mb.weights,
                mb.completion_mask,
                config.clip_coef,
                config.normalize_length,
                config.clip_coef_high,
            )
            # Means over tokens count by the tokens of this process, means over completions do not.
            mask = mb.completion_mask
            share = processes.token_share(mask)
            entropy = share * masked_mean(new.entropy, mask)
            loss = pg_loss + kl_coef * kl_loss
            if config.ent_coef:  # A weight of 0 would still cost the gradient of the entropy.
                loss = loss - config.ent_coef * entropy

            self.optimizer.zero_grad()
            loss.backward()
            processes.average_gradients(self.trained_parameters.values())
            terms = {"the policy loss": pg_loss, "the KL loss": kl_loss, "the entropy": entropy}
            parameters = self.trained_parameters.values()
            grad_norm = clip_gradients(parameters, config.max_grad_norm, terms)
            self.optimizer.step()

            log_ratio = (new.logprobs - mb.logprobs).detach()
            clipped = is_clipped(log_ratio, config.clip_coef, config.clip_coef_high)
            means.add(
                {
                    "train/policy_loss": pg_loss,
                    "train/kl_loss": kl_loss,
                    "train/entropy": entropy,
                    "train/approx_kl": share * masked_mean(kl_estimate(log_ratio), mask),
                    "train/clip_fraction": share * masked_mean(clipped.float(), mask),
                    "train/grad_norm": grad_norm,
                }
            )

        kl_per_episode = processes.mean((old.logprobs - old.ref_logprobs).sum(dim=1).mean()).item()
        self.kl_controller.update(kl_per_episode, num_episodes)
        return {
            **rollout.scalars(processes),
            **processes.means(about_sampler),
            **processes.means({"rollout/group_std": self._group_std(rollout.env_returns)}),
            "rollout/kl": kl_per_episode,
            "rollout/kl_exact": processes.mean(old.kl.sum(dim=1).mean()).item(),
            **processes.means(means.means()),
            "train/kl_coef": kl_coef,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
        }
