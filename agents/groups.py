"""What RLOO and GRPO share: groups of completions of one prompt replace the critic.

Each prompt is completed ``group_size`` times. The advantage of a completion says how much better it
did than the others of its group. It is one number per completion, and does not say which of its
tokens earned it; :func:`credit_weights` can.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError

from .agent import Agent
from .config import AgentConfig
from .losses import Batch
from .rollout import Rollout, collect_episodes

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["GroupAgent", "GroupBatch", "GroupConfig", "credit_weights"]


@dataclass(frozen=True, kw_only=True)
class GroupConfig(AgentConfig):
    """Hyperparameters of agents that compare completions of one prompt.

    The defaults take fewer gradient steps per iteration than PPO's.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    learning_rate: float = 5e-4
    """Learning rate of AdamW, after the warm-up; see :class:`~textgym.agents.AgentConfig`."""
    num_epochs: int = 2
    """Passes over the episodes of an iteration."""
    minibatch_size: int | None = 8
    """Episodes per gradient step; None takes all episodes of the iteration."""
    group_size: int = 4
    """Completions per prompt; divides episodes_per_iteration."""
    clip_coef: float = 0.2
    """The probability ratio is clipped to 1 ± this; in an iteration's first step it is 1."""
    clip_coef_high: float | None = None
    """Clips to 1 + this from above instead (arXiv 2503.14476); None for clip_coef."""
    advantages: str = "sequence"
    """"sequence": one per completion. "token": from the credit still to come at each token."""
    credit_weights: float = 0.0
    """0 weighs all tokens of a completion alike, 1 weighs them by their credit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_group_size(self.group_size, smallest=2)
        self._check("clip_coef", Real, "a finite number above 0", above=0)
        self._check_optional("clip_coef_high", Real, "a finite number above 0", above=0)
        self._check("credit_weights", Real, "a number from 0 to 1", minimum=0, maximum=1)
        self._check_choice("advantages", ("sequence", "token"))
        if self.advantages == "token" and self.credit_weights:
            raise InvalidArgumentError(
                "credit_weights",
                self.credit_weights,
                'must be 0 with advantages="token", which take the credit itself.',
            )


def credit_weights(credit: Tensor, completion_mask: Tensor, strength: float = 1.0) -> Tensor:
    """Weights of a completion's tokens, from their credit.

    The advantage here is one number per completion, so it does not change when credit moves the
    score from token to token. Credit can still say which tokens the advantage is about: token t of
    T gets the advantage A·w_t instead of A, with

        w_t = (1 − s) + s·T·|c_t| / Σ_k |c_k|

    and w_t = 1 if all credit is zero. Only the size of the credit counts: how much a token
    mattered. The advantage decides which way the token is pushed. So signed credit and scores near
    zero need no special care, unlike with shares c_t / R.

    What holds: every weight is at least 1 − s; the mean over a completion is 1, so the tokens
    distribute the advantage and add nothing to it; and the scale of the credit does not matter.
    What does not hold: an unbiased gradient. Credit is hindsight; weights that depend on later
    tokens bias the policy gradient, and training may end at another policy than with equal weights.
    Credit that an assigner leaves on the last token counts like any other, so use β = 1. Sparse
    reward puts all the weight on the last token.

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
    # Divide by the largest first: the sum of tiny or huge credits could be zero or infinite.
    size = torch.where(largest > 0, size / largest, completion_mask.to(size.dtype))
    length = completion_mask.sum(dim=1, keepdim=True)
    weights = (1 - strength) + strength * length * size / size.sum(dim=1, keepdim=True)
    return weights.masked_fill(~completion_mask, 0.0)


@dataclass(frozen=True)
class GroupBatch(Batch):
    """The storage of an update; everything in it is from before the update."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens
    ref_logprobs: Tensor  # (num_episodes, num_steps) under the reference policy
    advantages: Tensor  # (num_episodes,) of completions, or (num_episodes, num_steps) of tokens
    weights: Tensor  # (num_episodes, num_steps), see credit_weights


class GroupAgent(Agent):
    """An agent that judges a completion by the others of the same prompt; it has no critic.

    The return of an episode is the undiscounted sum of what ``step`` paid. Spreading it over the
    tokens as credit does not change it. Credit enters in one of two other ways.

    - ``advantages="token"``: a token is judged by the credit from itself to the end, minus the mean
      of the others of its group at the same step
      (:func:`textgym.agents.returns.mean_of_others`). If the credit is causal, a function of the
      text up to its token, the expected gradient is that of the sequence advantage: credit that was
      paid before a token does not depend on it, and is only noise to it. So prefix-score credit
      gives the same gradient with less variance. Hindsight credit, such as ABC, biases it.
    - ``credit_weights``: the size of the credit weighs the tokens of a completion, without any such
      guarantee (:func:`credit_weights`).

    The episodes of a group have the same prompt and the same token budget, because they are reset
    with the same seed (:func:`textgym.agents.collect_episodes`). The environment needs no other
    support for groups. It must end episodes by itself: without a critic, nothing is known about the
    rest of a truncated episode.

    Each iteration logs one row of scalars: in :attr:`history`, in ``log_dir/metrics.jsonl`` and, if
    the package ``tensorboard`` is installed, in TensorBoard files in the same folder:

    ========================  ======================================================================
    time/iteration            Number of iterations so far.
    time/total_timesteps      Tokens generated so far.
    time/seconds              Seconds of training so far.
    rollout/score_mean        Mean score of the episodes: unshaped, without the KL penalty.
    rollout/score_std         Standard deviation of the scores.
    rollout/episode_length    Mean number of generated tokens.
    rollout/return_mean       Mean undiscounted sum of what ``step`` paid, shaping included.
    rollout/group_std         Standard deviation of these sums within a group, mean over groups; at
                              0 there is nothing to learn.
    rollout/kl                Mean log-probability ratio of policy and reference policy, summed over
                              an episode, in nats.
    rollout/kl_exact          The same, with the exact KL divergence of each state; never negative.
    train/policy_loss         Clipped surrogate; mean over all minibatches, as for the next five.
    train/kl_loss             GRPO only: the KL penalty of the loss, before its weight.
    train/entropy             Mean entropy of the policy over the legal tokens, in nats.
    train/approx_kl           Estimated KL per token from the old policy to the updated one.
    train/clip_fraction       Share of the probability ratios that were clipped.
    train/grad_norm           Norm of the gradient before it is scaled down.
    train/kl_coef             Weight of the KL penalty in this iteration.
    train/learning_rate       Learning rate.
    train/alarm               1 if KL or entropy runs away, else 0; the first time in a run there is
                              a warning. The rule is in :mod:`textgym.agents.alarm`.
    ========================  ======================================================================
    """

    config: GroupConfig

    def _set_up_parts(self, own_parts: dict[str, Any], checkpoint: dict[str, Any] | None) -> None:
        model = self.policy.model
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidArgumentError(
                "policy",
                type(model).__name__,
                f"all of its parameters are frozen, and {self.name} has no critic to train instead:"
                " set requires_grad on those that are to be trained.",
            )
        super()._set_up_parts(own_parts, checkpoint)

    def _collect_groups(self, env: VectorEnv) -> Rollout:
        """Sample the episodes of an iteration, the members of a group one after the other."""
        rollout = collect_episodes(
            self.policy,
            env,
            self.config.episodes_per_iteration,
            generator=self._generators["tokens"],
            seed_generator=self._generators["episodes"],
            group_size=self.config.group_size,
            processes=self.processes,
            sampler=self.sampler,
        ).to(self.config.device)
        if rollout.truncated.any():
            raise InvalidArgumentError(
                "env",
                self.env,
                f"an episode was truncated, and {self.name} has no critic to value the rest of it: "
                "let the environment end it (max_new_tokens), without TimeLimit, or use PPO.",
            )
        return rollout

    def _group_std(self, returns: Tensor) -> float:
        """Standard deviation of the returns within a group, mean over groups."""
        groups = returns.view(-1, self.config.group_size)
        return groups.std(dim=1, correction=0).mean().item()
