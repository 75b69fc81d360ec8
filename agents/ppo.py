"""Token-level PPO for language models: read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then ``PPO._iterate``: one iteration, from the
rollout to the last optimizer step. Other files hold the sampling of episodes (rollout.py), the
language model with its value head (policy.py), the mathematics shared with RLOO and GRPO
(losses.py, kl.py), and the loop of iterations with logs and checkpoints (agent.py).

The form is CleanRL's (https://github.com/vwxyzjn/cleanrl); the algorithm is Schulman et al. 2017,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347, with the per-token KL penalty of
Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .agent import Agent
from .config import AgentConfig
from .kl import kl_estimate
from .losses import Batch, clip_gradients, clipped_surrogate, masked_mean, masked_whiten
from .metrics import ScalarMeans
from .rollout import Rollout, collect_episodes

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

__all__ = ["PPO", "PPOConfig", "gae", "policy_loss", "value_loss"]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """Hyperparameters of :class:`PPO`, in addition to those of every agent.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 the sampled return."""
    clip_coef: float = 0.2
    """The probability ratio is clipped to 1 ± this."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    vf_clip_coef: float | None = 0.2
    """Values are clipped to this distance from the old value; None switches the clipping off."""
    whiten_advantages: bool = True
    """Scale the advantages of an iteration to mean 0 and variance 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("clip_coef", Real, "a finite number above 0", above=0)
        self._check("vf_coef", Real, "a finite number of at least 0", minimum=0)
        for name in ("gamma", "gae_lambda"):
            self._check(name, Real, "a number from 0 to 1", minimum=0, maximum=1)
        if self.vf_clip_coef is not None:
            self._check("vf_clip_coef", Real, "a finite number above 0, or None", above=0)
        self._check_flag("whiten_advantages")


# --- Mathematics ----------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over ragged, terminated episodes.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", arXiv 1506.02438, equation 16: A_t = Σ_k (γλ)^k δ_{t+k}, with
    δ_t = r_t + γ V(s_{t+1}) − V(s_t). The value after an episode's last token is 0. To bootstrap a
    truncated episode, add γ V(last state) to its last reward.

    A row's mask is True from its first to its last token. A row of five columns with three
    generated tokens, paid at the end::

        mask        1    1    1    0    0
        rewards     0    0    R    ·    ·     entries at the dots are ignored
        values      v0   v1   v2   ·    ·
        δ        γv1−v0 γv2−v1 R−v2

    Args:
        rewards: (num_episodes, num_steps).
        values: V of the state in which each token was chosen, (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).
        gamma: Discount.
        gae_lambda: λ.

    Returns:
        Advantages, and returns (advantages + values, the targets of the critic), both
        (num_episodes, num_steps), zero outside the mask.
    """
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = rewards.new_zeros(len(rewards))  # (num_episodes,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * gae_lambda * next_advantage).masked_fill(~mask[:, t], 0.0)
        next_value = values[:, t].masked_fill(~mask[:, t], 0.0)
        advantages[:, t] = next_advantage
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_coef: float
) -> Tensor:
    """The negative clipped surrogate, averaged over tokens.

    Args:
        logprobs: Log-probabilities of the chosen tokens under the updated policy,
            (batch, num_steps).
        old_logprobs: The same under the policy that sampled them, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.

    Returns:
        A scalar.
    """
    return masked_mean(-clipped_surrogate(logprobs - old_logprobs, advantages, clip_coef), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, vf_clip_coef: float | None
) -> Tensor:
    """Half the squared error of the critic, clipped, averaged over tokens.

    The larger of the clipped and the unclipped error counts. So a value that has moved more than
    ``vf_clip_coef`` towards its target gets no further gradient.

    Args:
        values: Values of the updated critic, (batch, num_steps).
        old_values: Values before the update, (batch, num_steps).
        returns: The targets, (batch, num_steps).
        mask: bool (batch, num_steps).
        vf_clip_coef: Largest distance from the old value; None switches the clipping off.

    Returns:
        A scalar.
    """
    error = (values - returns).square()
    if vf_clip_coef is not None:
        clipped = old_values + (values - old_values).clamp(-vf_clip_coef, vf_clip_coef)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * masked_mean(error, mask)


# --- Agent ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch(Batch):
    """The storage of an update; everything in it is from before the update."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens
    values: Tensor  # (num_episodes, num_steps)
    advantages: Tensor  # (num_episodes, num_steps)
    returns: Tensor  # (num_episodes, num_steps)


class PPO(Agent):
    """Proximal policy optimisation of a causal language model, one token per step.

    Each iteration samples whole episodes, gives every token a reward, its credit minus a penalty
    for leaving the reference policy, estimates advantages with GAE, and takes a few epochs of
    clipped gradient steps over whole sequences. The reference policy is a frozen copy of the policy
    at the start. The penalty of a token is ``kl_coef * (logprob - ref_logprob)``. Its sum over an
    episode is an unbiased estimate of the KL divergence, and may be negative for one episode.

    Where the environment provides ``info["credit"]`` at the end of an episode, the agent learns
    from it instead of from the rewards that ``step`` paid.

    All randomness comes from ``seed``, with separate generators for prompts, tokens and
    minibatches. So agents with equal seeds see equal prompts in every iteration, even if they
    sample different tokens.

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
    rollout/kl                Mean log-probability ratio of policy and reference policy, summed over
                              an episode, in nats.
    train/policy_loss         Clipped surrogate; mean over all minibatches, as for the next five.
    train/value_loss          Half the squared error of the critic, clipped.
    train/entropy             Mean entropy of the policy over the legal tokens, in nats.
    train/approx_kl           Estimated KL per token from the old policy to the updated one.
    train/clip_fraction       Share of the tokens whose probability ratio was clipped.
    train/grad_norm           Norm of the gradient before it is scaled down.
    train/explained_variance  1 − Var(return − value) / Var(return), before the update.
    train/kl_coef             Weight of the KL penalty in this iteration.
    train/learning_rate       Learning rate.
    ========================  ======================================================================

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and not changed. Parameters with ``requires_grad=False`` stay frozen.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. It must have the policy's vocabulary.
        **hyperparameters: The fields of :class:`PPOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "PPO"
    config_class = PPOConfig
    config: PPOConfig

    def _iterate(self, env: VectorEnv) -> dict[str, float]:
        """Run one iteration, from the rollout to the last optimizer step; returns its scalars."""
        config, kl_coef = self.config, self.kl_controller.coef
        num_episodes = config.episodes_per_iteration

        # Rollout: whole episodes. Prompts are padded on the left, completions on the right.
        rollout = collect_episodes(
            self.policy,
            env,
            num_episodes,
            generator=self._generators["tokens"],
            seed_generator=self._generators["episodes"],
        ).to(config.device)
        mask = rollout.completion_mask  # (num_episodes, num_steps)
        self.num_timesteps += int(mask.sum())

        # Log-probabilities and values, (num_episodes, num_steps). The rollout has log-probabilities
        # already, but in bfloat16 the forward with a cache rounds differently from the one that is
        # trained, and the first probability ratio must be 1.
        with torch.no_grad():
            old = self.policy.evaluate(*rollout.texts)
            ref = self.ref_policy.evaluate(*rollout.texts)

        # Rewards and advantages, (num_episodes, num_steps).
        kl = old.logprobs - ref.logprobs
        rewards = rollout.credit - kl_coef * kl
        if rollout.truncated.any():
            rewards = rewards + config.gamma * self._values_after_truncation(rollout)
        advantages, returns = gae(rewards, old.values, mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)

        # Update: epochs of minibatches of whole episodes.
        batch = _Batch(*rollout.texts, old.logprobs, old.values, advantages, returns)
        means = ScalarMeans()
        for _ in range(config.num_epochs):
            order = torch.randperm(num_episodes, generator=self._generators["minibatches"])
            for indices in order.split(config.minibatch_size or num_episodes):
                mb = batch.minibatch(indices)
                new = self.policy.evaluate(*mb.texts)
                pg_loss = policy_loss(
                    new.logprobs, mb.logprobs, mb.advantages, mb.completion_mask, config.clip_coef
                )
                v_loss = value_loss(
                    new.values, mb.values, mb.returns, mb.completion_mask, config.vf_clip_coef
                )
                entropy = masked_mean(new.entropy, mb.completion_mask)
                loss = pg_loss + config.vf_coef * v_loss
                if config.ent_coef:  # A weight of 0 would still cost the gradient of the entropy.
                    loss = loss - config.ent_coef * entropy

                self.optimizer.zero_grad()
                loss.backward()
                grad_norm = clip_gradients(self.trained_parameters.values(), config.max_grad_norm)
                self.optimizer.step()

                log_ratio = (new.logprobs - mb.logprobs).detach()
                is_clipped = (log_ratio.exp() - 1).abs() > config.clip_coef
                means.add(
                    {
                        "train/policy_loss": pg_loss,
                        "train/value_loss": v_loss,
                        "train/entropy": entropy,
                        "train/approx_kl": masked_mean(kl_estimate(log_ratio), mb.completion_mask),
                        "train/clip_fraction": masked_mean(is_clipped.float(), mb.completion_mask),
                        "train/grad_norm": grad_norm,
                    }
                )

        kl_per_episode = kl.sum(dim=1).mean().item()
        self.kl_controller.update(kl_per_episode, num_episodes)
        return {
            **rollout.scalars(),
            "rollout/kl": kl_per_episode,
            **means.means(),
            "train/explained_variance": _explained_variance(old.values[mask], returns[mask]),
            "train/kl_coef": kl_coef,
            "train/learning_rate": config.learning_rate,
        }

    @torch.no_grad()
    def _values_after_truncation(self, rollout: Rollout) -> Tensor:
        """V of the last state of each truncated episode, at its last step; zero elsewhere.

        Returns:
            (num_episodes, num_steps)
        """
        num_steps = rollout.completion_mask.shape[1]
        _, values = self.policy(rollout.input_ids, rollout.attention_mask, num_logits=num_steps)
        columns = torch.arange(num_steps, device=values.device)
        is_last = columns == rollout.episode_lengths[:, None] - 1  # (num_episodes, num_steps)
        return values * (is_last & rollout.truncated[:, None])


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(return − value) / Var(return); 0 if the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 0.0 if variance == 0 else 1 - (returns - values).var(correction=0).item() / variance
