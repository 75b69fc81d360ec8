"""Token-level PPO for language models: read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then the agent: label a rollout, update. The
loop around it, with rollouts, logs and checkpoints, is that of all agents, in base.py.
The form is CleanRL's (https://github.com/vwxyzjn/cleanrl); the algorithm is Schulman et al. 2017,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347, with the per-token KL penalty of
Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from .base import Agent, AgentConfig, Batch
from .kl import AdaptiveKLController, kl_estimate
from .rollout import Rollout

__all__ = [
    "PPO",
    "AdaptiveKLController",
    "PPOConfig",
    "clipped_surrogate",
    "gae",
    "masked_mean",
    "masked_whiten",
    "policy_loss",
    "value_loss",
]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PPOConfig(AgentConfig):
    """Hyperparameters of :class:`PPO`, besides those of every agent.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the critic, 1 the sampled return."""
    clip_coef: float = 0.2
    """The probability ratio counts up to 1 ± this."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    vf_clip_coef: float | None = 0.2
    """The value may move this far from the old value in one iteration; None: any distance."""
    whiten_advantages: bool = True
    """Bring the advantages of an iteration to mean 0 and variance 1."""

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


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the entries of ``x`` where ``mask`` is True; a scalar."""
    # Selecting, not multiplying: what lies outside may be anything, infinite too.
    return x[mask].mean()


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale ``x`` to mean 0 and variance 1 over the mask, and set it to 0 outside.

    Args:
        x: Any shape.
        mask: True at the entries that count, shape of ``x``.

    Returns:
        Shape of ``x``.
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return ((x - mean) * (variance + 1e-8).rsqrt()).masked_fill(~mask, 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over ragged, terminated episodes.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", arXiv 1506.02438, equation 16: A_t = Σ_k (γλ)^k δ_{t+k}, with
    δ_t = r_t + γ V(s_{t+1}) − V(s_t). The value after an episode's last token is 0. A reward that
    is to be bootstrapped beyond it (a truncated episode) brings γ V with it in its last entry.

    A row's mask is True from its first to its last token. A five-token row of which three were
    generated, paid at the end::

        mask        1    1    1    0    0
        rewards     0    0    R    ·    ·     what stands at the dots is not looked at
        values      v0   v1   v2   ·    ·
        δ        γv1−v0 γv2−v1 R−v2

    Args:
        rewards: (num_episodes, num_steps).
        values: V of the state in which each token was chosen, (num_episodes, num_steps).
        mask: bool (num_episodes, num_steps).
        gamma: Discount.
        gae_lambda: λ.

    Returns:
        Advantages and returns (their sum with the values: the targets of the critic), both
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


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """What PPO maximises (arXiv 1707.06347, equation 7): min(r·A, clip(r, 1 − ε, 1 + ε)·A).

    Args:
        log_ratio: log r: the log-probability of the actions under the policy that is updated, minus
            that under the policy that sampled them, any shape.
        advantages: A, same shape.
        clip_coef: ε.

    Returns:
        Same shape.
    """
    ratio = log_ratio.exp()
    return torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip_coef, 1 + clip_coef))


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_coef: float
) -> Tensor:
    """The clipped surrogate of every token, negated, as a mean over tokens.

    Args:
        logprobs: Of the chosen tokens under the policy that is updated, (batch, num_steps).
        old_logprobs: Under the policy that sampled them, (batch, num_steps).
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
    """Half the squared error of the critic, clipped as the policy is, as a mean over tokens.

    A value that moved further than ``vf_clip_coef`` from where it was, towards its target, gets
    no further gradient: the larger of the two errors counts.

    Args:
        values: Of the critic that is updated, (batch, num_steps).
        old_values: At the time of the rollout, (batch, num_steps).
        returns: The targets, (batch, num_steps).
        mask: bool (batch, num_steps).
        vf_clip_coef: None switches the clipping off.

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
    """What the losses look at."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens, before the update
    values: Tensor  # (num_episodes, num_steps) before the update
    advantages: Tensor  # (num_episodes, num_steps)
    returns: Tensor  # (num_episodes, num_steps)


class PPO(Agent):
    """Proximal policy optimisation of a causal language model, one token per step.

    Each iteration samples whole episodes, pays every token its credit minus a penalty for leaving
    the reference policy, estimates advantages with GAE, and takes a few epochs of clipped
    gradient steps over whole sequences. The reference policy is a frozen copy of the policy at
    the start. The penalty of a token is ``kl_coef * (logprob - ref_logprob)``; its sum over an
    episode is an unbiased estimate of the KL divergence, and may be negative for one episode.

    Where the environment hands over ``info["credit"]`` at the end of an episode, the agent learns
    from it, in the place of the rewards that ``step`` paid; otherwise it learns from those.

    All randomness comes from ``seed``, in separate streams for prompts, tokens and minibatches:
    agents with equal seeds see equal prompts in every iteration, however differently they sample.

    Scalars, one row per iteration, in :attr:`history`, in ``log_dir/metrics.jsonl`` and, if the
    package ``tensorboard`` is installed, in TensorBoard files beside it:

    ========================  ======================================================================
    time/iteration            Number of iterations done.
    time/total_timesteps      Tokens stepped in the environment.
    time/seconds              Seconds of training.
    rollout/score_mean        Mean score of the episodes: unshaped, without the KL penalty.
    rollout/score_std         Their standard deviation.
    rollout/episode_length    Mean number of generated tokens.
    rollout/kl                Mean over episodes of the summed penalty terms, in nats.
    rollout/return_mean       Mean undiscounted sum of what ``step`` paid, shaping included.
    train/policy_loss         Clipped surrogate, mean over all minibatches; so are the next four.
    train/value_loss          Half the squared error of the critic, clipped.
    train/entropy             Mean entropy of the policy over the legal tokens, in nats.
    train/approx_kl           Estimated KL from the old policy to the updated one, per token.
    train/clip_fraction       Share of the tokens whose probability ratio was clipped.
    train/grad_norm           Norm of the gradient before it is scaled down.
    train/explained_variance  1 − Var(return − value) / Var(return), before the update.
    train/kl_coef             Weight of the KL penalty in this iteration.
    train/learning_rate       Learning rate.
    ========================  ======================================================================

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and stays as it is.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. Its tokenizer must be the policy's.
        **hyperparameters: The fields of :class:`PPOConfig`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "PPO"
    config_class = PPOConfig
    config: PPOConfig

    def _learn_from(self, rollout: Rollout) -> dict[str, float]:
        """Label, update; returns the scalars."""
        batch, kl = self._label(rollout)
        losses = self._update(batch)
        mask = batch.completion_mask
        return {
            "rollout/kl": kl,
            **losses,
            "train/explained_variance": _explained_variance(
                batch.values[mask], batch.returns[mask]
            ),
        }

    @torch.no_grad()
    def _label(self, rollout: Rollout) -> tuple[_Batch, float]:
        """Give every token its reward and its advantage; also returns the KL per episode."""
        config = self.config
        *_, mask = texts = self._texts(rollout)
        # Computed anew, although sampling knew the log-probabilities: in bfloat16 the cached
        # forward rounds otherwise than the one that is trained, and the first ratio must be 1.
        old = self.policy.evaluate(*texts)
        ref = self.ref_policy.evaluate(*texts)
        kl = old.logprobs - ref.logprobs  # (num_episodes, num_steps)
        rewards = rollout.credit.to(config.device) - self.kl_controller.coef * kl
        if rollout.truncated.any():
            rewards = rewards + config.gamma * self._values_after_truncation(rollout)
        advantages, returns = gae(rewards, old.values, mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        batch = _Batch(*texts, old.logprobs, old.values, advantages, returns)
        return batch, kl.sum(dim=1).mean().item()

    def _values_after_truncation(self, rollout: Rollout) -> Tensor:
        """V of the last state where an episode was cut off; zero elsewhere.

        Returns:
            (num_episodes, num_steps), at the last step of each truncated episode.
        """
        ids, mask, completion_mask = self._texts(rollout)
        num_steps = completion_mask.shape[1]
        _, values = self.policy(ids, mask, num_logits=num_steps)
        columns = torch.arange(num_steps)
        is_last = columns == rollout.episode_lengths[:, None] - 1  # (num_episodes, num_steps)
        return values * (is_last & rollout.truncated[:, None]).to(values.device)

    def _update(self, batch: _Batch) -> dict[str, float]:
        """Epochs of clipped gradient steps; returns the means of their scalars."""
        config = self.config
        scalars = defaultdict(list)
        for minibatch in self._minibatches(batch):
            mask = minibatch.completion_mask
            new = self.policy.evaluate(*minibatch.texts)
            surrogate = policy_loss(
                new.logprobs, minibatch.logprobs, minibatch.advantages, mask, config.clip_coef
            )
            error = value_loss(
                new.values, minibatch.values, minibatch.returns, mask, config.vf_clip_coef
            )
            entropy = masked_mean(new.entropy, mask)
            loss = surrogate + config.vf_coef * error
            if config.ent_coef:
                loss = loss - config.ent_coef * entropy
            grad_norm = self._gradient_step(loss)
            with torch.no_grad():
                log_ratio = new.logprobs - minibatch.logprobs
                clipped = ((log_ratio.exp() - 1).abs() > config.clip_coef).float()
                scalars["train/policy_loss"].append(surrogate.item())
                scalars["train/value_loss"].append(error.item())
                scalars["train/entropy"].append(entropy.item())
                scalars["train/approx_kl"].append(masked_mean(kl_estimate(log_ratio), mask).item())
                scalars["train/clip_fraction"].append(masked_mean(clipped, mask).item())
                scalars["train/grad_norm"].append(grad_norm)
        return {name: float(np.mean(values)) for name, values in scalars.items()}


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(return − value) / Var(return); 0 where the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 0.0 if variance == 0 else 1 - (returns - values).var(correction=0).item() / variance
