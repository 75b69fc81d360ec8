"""REINFORCE with a leave-one-out baseline (RLOO): read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then ``RLOO._iterate``: one iteration, from the
rollout to the last optimizer step. What it shares with GRPO is in groups.py, the loop of iterations
in agent.py.

Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from
Human Feedback in LLMs", arXiv 2402.14740, with the estimator of Kool et al. 2019, "Buy 4 REINFORCE
Samples, Get a Baseline for Free!". A whole completion is one action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .groups import GroupAgent, GroupBatch, GroupConfig, credit_weights
from .kl import KL_PENALTIES, kl_estimate, penalty_per_token
from .losses import clip_gradients, clipped_surrogate, completion_mean, is_clipped, masked_mean
from .metrics import ScalarMeans
from .policy import Comparison
from .returns import mean_of_others, returns_to_go

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = [
    "RLOO",
    "RLOOConfig",
    "leave_one_out_advantages",
    "rloo_loss",
    "rloo_token_loss",
    "sequence_log_ratio",
]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupConfig):
    """Hyperparameters of :class:`RLOO`, in addition to those of all agents with groups.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    kl_penalty: str = "k1"
    """What a token pays for leaving the reference policy: k1, k2, k3 or exact; see kl.py."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("kl_penalty", KL_PENALTIES)


# --- Mathematics ----------------------------------------------------------------------------------


def leave_one_out_advantages(returns: Tensor, group_size: int) -> Tensor:
    """Each return minus the mean of the others in its group.

    These advantages leave the policy gradient unbiased: a baseline may depend on anything but the
    completion that it judges (Kool et al. 2019). They sum to 0 in each group, and are k/(k − 1)
    times what the mean of the whole group would give, with k the size of the group.

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
    """Logarithm of the probability ratio of whole completions, a weighted sum over tokens.

    Args:
        logprobs: Log-probabilities of the chosen tokens under the updated policy,
            (batch, num_steps).
        old_logprobs: The same under the policy that sampled them, (batch, num_steps).
        weights: Weights of the tokens, (batch, num_steps); 1 everywhere gives the actual ratio.
        mask: bool (batch, num_steps).

    Returns:
        (batch,)
    """
    return (weights * (logprobs - old_logprobs)).masked_fill(~mask, 0.0).sum(dim=1)


def rloo_loss(
    log_ratio: Tensor, advantages: Tensor, clip_coef: float, clip_coef_high: float | None = None
) -> Tensor:
    """The negative clipped surrogate of whole completions, averaged over completions.

    At the policy that sampled them, its gradient is that of REINFORCE, −A·Σ_t w_t·∇ log π(y_t),
    with weights w_t = 1 unless credit sets them. The paper takes only this one step. Further steps
    on the same completions need the ratio and the clip.

    Args:
        log_ratio: See :func:`sequence_log_ratio`, (batch,).
        advantages: (batch,).
        clip_coef: ε.
        clip_coef_high: ε above 1; None for the same.

    Returns:
        A scalar.
    """
    return -clipped_surrogate(log_ratio, advantages, clip_coef, clip_coef_high).mean()


def rloo_token_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_coef: float,
    clip_coef_high: float | None = None,
) -> Tensor:
    """The same with an advantage for each token: summed over tokens, averaged over completions.

    At the policy that sampled them, its gradient is −Σ_t A_t·∇ log π(y_t). Each token has a ratio
    of its own here, and a clip of its own.

    Args:
        log_ratio: Log-probabilities of the chosen tokens under the updated policy minus those under
            the policy that sampled them, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.
        clip_coef_high: ε above 1; None for the same.

    Returns:
        A scalar.
    """
    surrogate = clipped_surrogate(log_ratio, advantages, clip_coef, clip_coef_high)
    return completion_mean(-surrogate, mask, normalize_length=False)


# --- Agent ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch(GroupBatch):
    """The storage of an update; everything in it is from before the update."""

    ref_logits: Tensor | None  # (num_episodes, num_steps, vocab), for the exact KL penalty


class RLOO(GroupAgent):
    """REINFORCE leave-one-out: a completion is judged by the mean of the others of its prompt.

    The return of an episode is what ``step`` paid minus ``kl_coef`` times the log-probability ratio
    of policy and reference policy over the whole completion. So the KL penalty is part of the
    reward, as in PPO, but as one number per completion. The advantage is this return minus the mean
    return of the others in the group. All tokens of a completion get the same advantage, or weigh
    it by their credit (``credit_weights``), KL penalty included. With ``advantages="token"`` each
    token gets its own, from the credit and the penalty from itself to the end.

    With ``num_epochs=1`` and ``minibatch_size=None`` every iteration is one step along the unbiased
    gradient of the paper. With more epochs or smaller minibatches, the clipped ratio of the whole
    completion keeps further steps close to the policy that sampled.

    The scalars are those of :class:`~textgym.agents.groups.GroupAgent`.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and not changed. Parameters with ``requires_grad=False`` stay frozen.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. It must have the policy's vocabulary.
        **hyperparameters: The fields of :class:`RLOOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "RLOO"
    config_class = RLOOConfig
    config: RLOOConfig

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

        # Advantages, (num_episodes,) or (num_episodes, num_steps); weights of tokens,
        # (num_episodes, num_steps).
        penalty = penalty_per_token(config.kl_penalty, old.logprobs, old.ref_logprobs, old.kl, mask)
        if config.advantages == "token":
            to_go = returns_to_go(rollout.credit - kl_coef * penalty, mask)
            advantages = to_go - mean_of_others(to_go, mask, config.group_size)
        else:
            returns = rollout.env_returns - kl_coef * penalty.sum(dim=1)
            advantages = leave_one_out_advantages(returns, config.group_size)
        advantages, about_sampler = self._importance_weighted(advantages, rollout, old.logprobs)
        weights = credit_weights(rollout.credit, mask, config.credit_weights)

        # Update: epochs of minibatches of whole episodes.
        kept_logits = ref_logits if config.kl_penalty == "exact" else None
        del ref_logits  # They may take more memory than a minibatch.
        batch = _Batch(
            *rollout.texts, old.logprobs, old.ref_logprobs, advantages, weights, kept_logits
        )
        means = ScalarMeans()
        for mb in batch.minibatches(
            config.num_epochs, self._own_minibatch_size, self._generators["minibatches"]
        ):
            new = (
                self.policy.evaluate(*mb.texts)
                if mb.ref_logits is None
                else self.policy.compare(*mb.texts, mb.ref_logits)
            )
            # Means over tokens count by the tokens of this process, means over completions do not.
            share = processes.token_share(mb.completion_mask)
            clip_coefs = config.clip_coef, config.clip_coef_high
            token_log_ratio = new.logprobs - mb.logprobs
            if config.advantages == "token":
                log_ratio = token_log_ratio
                pg_loss = rloo_token_loss(log_ratio, mb.advantages, mb.completion_mask, *clip_coefs)
                clipped = share * is_clipped(log_ratio.detach(), *clip_coefs)[mb.completion_mask]
            else:
                log_ratio = sequence_log_ratio(
                    new.logprobs, mb.logprobs, mb.weights, mb.completion_mask
                )
                pg_loss = rloo_loss(log_ratio, mb.advantages, *clip_coefs)
                clipped = is_clipped(log_ratio.detach(), *clip_coefs)
            entropy = share * masked_mean(new.entropy, mb.completion_mask)
            loss = pg_loss
            if isinstance(new, Comparison):
                kl_of_states = completion_mean(new.kl, mb.completion_mask, normalize_length=False)
                loss = loss + kl_coef * kl_of_states
            if config.ent_coef:  # A weight of 0 would still cost the gradient of the entropy.
                loss = loss - config.ent_coef * entropy

            self.optimizer.zero_grad()
            loss.backward()
            processes.average_gradients(self.trained_parameters.values())
            terms = {"the policy loss": pg_loss, "the entropy": entropy}
            parameters = self.trained_parameters.values()
            grad_norm = clip_gradients(parameters, config.max_grad_norm, terms)
            self.optimizer.step()

            approx_kl = kl_estimate(token_log_ratio.detach())
            means.add(
                {
                    "train/policy_loss": pg_loss,
                    "train/entropy": entropy,
                    "train/approx_kl": share * masked_mean(approx_kl, mb.completion_mask),
                    "train/clip_fraction": clipped.float().mean(),
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
