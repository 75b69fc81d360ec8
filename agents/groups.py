"""What RLOO and GRPO have in common: groups of completions of one prompt take the critic's place.

Each prompt is completed ``group_size`` times, and a completion is judged by its group: its
advantage says by how much it did better than the others. One number for a whole completion leaves
open which of its tokens earned it; :func:`credit_weights` can say.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError

from .base import Agent, AgentConfig, Batch
from .kl import kl_estimate
from .policy import Evaluation
from .ppo import masked_mean
from .rollout import Rollout

__all__ = ["GroupAgent", "GroupBatch", "GroupConfig", "credit_weights"]


@dataclass(frozen=True, kw_only=True)
class GroupConfig(AgentConfig):
    """Hyperparameters of agents that compare completions of one prompt.

    By default an iteration is one gradient step on all of its episodes, all of them sampled from
    the policy that takes it; so the step may be larger than one of PPO's many.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    learning_rate: float = 2e-4
    """Learning rate of AdamW, constant."""
    num_epochs: int = 1
    """Passes over the episodes of an iteration."""
    minibatch_size: int | None = None
    """Episodes per gradient step; None: all of the iteration."""
    group_size: int = 4
    """Completions per prompt; divides episodes_per_iteration."""
    clip_coef: float = 0.2
    """The probability ratio counts up to 1 ± this; it is 1 in an iteration's first step."""
    credit_weights: float = 0.0
    """Share of a completion's weight that its tokens get by their credit; 0 weighs all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("group_size", Integral, "a whole number of at least 2", minimum=2)
        if self.episodes_per_iteration % self.group_size:
            raise InvalidArgumentError(
                "group_size",
                self.group_size,
                f"must divide episodes_per_iteration={self.episodes_per_iteration}.",
            )
        self._check("clip_coef", Real, "a finite number above 0", above=0)
        self._check("credit_weights", Real, "a number from 0 to 1", minimum=0, maximum=1)


def credit_weights(credit: Tensor, completion_mask: Tensor, strength: float = 1.0) -> Tensor:
    """Weights of a completion's tokens, by their credit.

    An advantage that is one number for a whole completion does not change when credit moves the
    score from token to token. What credit can do is to say which tokens the advantage is about:
    token t of T is given A·w_t in the place of A, with

        w_t = (1 − s) + s·T·|c_t| / Σ_k |c_k|

    and w_t = 1 where all credit is zero. The size of a credit alone counts: how much a token
    mattered. Which way it is pushed is up to the advantage. So signed credit and scores near zero,
    by which a share c_t / R cannot be divided, are nothing special.

    Guaranteed is that weights are at least 1 − s, that their mean over a completion is 1, so that
    the tokens share out the advantage and add nothing to it, and that the scale of the credit does
    not matter. Nothing is guaranteed about the gradient: credit is known in hindsight only, weights
    that depend on later tokens bias the policy gradient, and the policy that it leads to need not
    be the one that equal weights lead to. What an assigner leaves on the last token is that token's
    credit as any other: use β = 1, and note that sparse reward is all weight on the last token.

    Args:
        credit: (num_episodes, num_steps).
        completion_mask: bool (num_episodes, num_steps), at least one True in each row.
        strength: s, from 0 to 1.

    Returns:
        (num_episodes, num_steps), 0 outside the mask.

    Example:
        >>> credit = torch.tensor([[0.5, -0.25, 0.25, 0.0, 9.0]])
        >>> mask = torch.tensor([[True, True, True, True, False]])
        >>> credit_weights(credit, mask)
        tensor([[2., 1., 1., 0., 0.]])
        >>> credit_weights(credit, mask, strength=0.5)
        tensor([[1.5000, 1.0000, 1.0000, 0.5000, 0.0000]])
    """
    size = credit.abs().masked_fill(~completion_mask, 0.0)
    largest = size.amax(dim=1, keepdim=True)
    # Divided by the largest first, so that the sum of very small credits does not vanish.
    size = torch.where(largest > 0, size / largest, completion_mask.to(size.dtype))
    length = completion_mask.sum(dim=1, keepdim=True)
    weights = (1 - strength) + strength * length * size / size.sum(dim=1, keepdim=True)
    return weights.masked_fill(~completion_mask, 0.0)


@dataclass(frozen=True)
class GroupBatch(Batch):
    """What the losses look at."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens, before the update
    ref_logprobs: Tensor  # (num_episodes, num_steps) under the reference policy
    advantages: Tensor  # (num_episodes,)
    weights: Tensor  # (num_episodes, num_steps) of mean 1 over each completion


class GroupAgent(Agent):
    """An agent that judges a completion by the others of the same prompt; it has no critic.

    The return of an episode is the undiscounted sum of what ``step`` paid. How credit is spread
    over the tokens cannot change it, so credit enters through the weights of the tokens alone, see
    :func:`credit_weights`, and only if the hyperparameter of that name is above 0.

    The episodes of a group start from the same prompt and the same budget of tokens, because they
    are reset with the same seed (:func:`textgym.agents.collect_episodes`). Nothing more is asked of
    the environment. Episodes must end by themselves: what a truncated one would still have been
    paid is a critic's to say.

    Scalars, one row per iteration, in :attr:`history`, in ``log_dir/metrics.jsonl`` and, if the
    package ``tensorboard`` is installed, in TensorBoard files beside it:

    ========================  ======================================================================
    time/iteration            Number of iterations done.
    time/total_timesteps      Tokens stepped in the environment.
    time/seconds              Seconds of training.
    rollout/score_mean        Mean score of the episodes: unshaped, without the KL penalty.
    rollout/score_std         Their standard deviation.
    rollout/episode_length    Mean number of generated tokens.
    rollout/kl                Mean over episodes of the log-probability ratio of policy and
                              reference policy, in nats.
    rollout/return_mean       Mean undiscounted sum of what ``step`` paid, shaping included.
    rollout/group_std         Mean standard deviation of these sums within a group; where it is 0,
                              there is nothing to learn.
    train/policy_loss         Clipped surrogate, mean over all minibatches; so are the next five.
    train/kl_loss             GRPO only: the KL penalty of the loss, before its weight.
    train/entropy             Mean entropy of the policy over the legal tokens, in nats.
    train/approx_kl           Estimated KL from the old policy to the updated one, per token.
    train/clip_fraction       Share of the probability ratios that were clipped.
    train/grad_norm           Norm of the gradient before it is scaled down.
    train/kl_coef             Weight of the KL penalty in this iteration.
    train/learning_rate       Learning rate.
    ========================  ======================================================================
    """

    config: GroupConfig

    @property
    def _group_size(self) -> int:
        return self.config.group_size

    @abstractmethod
    def _advantages(self, returns: Tensor, kl: Tensor) -> Tensor:
        """One advantage per episode.

        Args:
            returns: (num_episodes,), the members of a group one after the other.
            kl: Log-probability ratio of policy and reference policy, (num_episodes,).

        Returns:
            (num_episodes,)
        """

    @abstractmethod
    def _loss(self, batch: GroupBatch, new: Evaluation) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to be minimised, and scalars about it.

        Args:
            batch: A minibatch.
            new: What the policy that is updated says about it.
        """

    def _learn_from(self, rollout: Rollout) -> dict[str, float]:
        """Label, update; returns the scalars."""
        if rollout.truncated.any():
            raise InvalidArgumentError(
                "env",
                self.env,
                f"an episode was truncated, and {self.name} has no critic to say what was still to "
                "come: let the environment end it (max_new_tokens), without TimeLimit, or use PPO.",
            )
        batch, kl = self._label(rollout)
        groups = rollout.env_returns.view(-1, self._group_size)
        return {
            "rollout/kl": kl,
            "rollout/group_std": groups.std(dim=1, correction=0).mean().item(),
            **self._update(batch),
        }

    @torch.no_grad()
    def _label(self, rollout: Rollout) -> tuple[GroupBatch, float]:
        """Give every episode its advantage, every token its weight; also returns the mean KL."""
        *_, mask = texts = self._texts(rollout)
        # Computed anew, although sampling knew the log-probabilities: in bfloat16 the cached
        # forward rounds otherwise than the one that is trained, and the first ratio must be 1.
        old = self.policy.evaluate(*texts)
        ref = self.ref_policy.evaluate(*texts)
        kl = (old.logprobs - ref.logprobs).sum(dim=1)  # (num_episodes,)
        advantages = self._advantages(rollout.env_returns.to(mask.device), kl)
        weights = credit_weights(rollout.credit.to(mask.device), mask, self.config.credit_weights)
        batch = GroupBatch(*texts, old.logprobs, ref.logprobs, advantages, weights)
        return batch, kl.mean().item()

    def _update(self, batch: GroupBatch) -> dict[str, float]:
        """Epochs of gradient steps; returns the means of their scalars."""
        means = defaultdict(list)
        for minibatch in self._minibatches(batch):
            mask = minibatch.completion_mask
            new = self.policy.evaluate(*minibatch.texts)
            loss, scalars = self._loss(minibatch, new)
            entropy = masked_mean(new.entropy, mask)
            if self.config.ent_coef:
                loss = loss - self.config.ent_coef * entropy
            grad_norm = self._gradient_step(loss)
            with torch.no_grad():
                approx_kl = masked_mean(kl_estimate(new.logprobs - minibatch.logprobs), mask)
            scalars |= {"train/entropy": entropy, "train/approx_kl": approx_kl}
            for name, value in scalars.items():
                means[name].append(value.item())
            means["train/grad_norm"].append(grad_norm)
        return {name: float(np.mean(values)) for name, values in means.items()}
