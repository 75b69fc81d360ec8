"""Token-level PPO for language models: read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then ``PPO._iterate``: one iteration, from the
rollout to the last optimizer step. Other files hold the sampling of episodes (rollout.py), the
language model with its value head (policy.py), the critics (critics.py), the mathematics shared
with RLOO and GRPO (losses.py, kl.py), and the training loop with checkpoints (agent.py).

The form is CleanRL's (https://github.com/vwxyzjn/cleanrl); the algorithm is Schulman et al. 2017,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347, with the per-token KL penalty of
Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError

from .agent import Agent
from .config import AgentConfig
from .critics import CRITICS, Critic
from .kl import KL_PENALTIES, kl_estimate, penalty_per_token
from .losses import (
    Batch,
    clip_gradients,
    clipped_surrogate,
    is_clipped,
    masked_mean,
    whitening,
)
from .metrics import ScalarMeans, explained_variance
from .parts import CUSTOM, check_part, own_part
from .policy import Comparison
from .rollout import collect_episodes

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
    critic_lambda: float | None = None
    """Lambda of the critic's targets (arXiv 2503.01491, decoupled GAE); None for gae_lambda."""
    critic: str = "head"
    """Where values come from: "head", "reward-model", "separate" or "none"; see critics.py."""
    critic_learning_rate: float | None = None
    """Learning rate of a critic with a network of its own; None for learning_rate."""
    critic_warmup: int = 0
    """Iterations in which only the critic is trained; the weight of the KL penalty waits, too."""
    group_size: int = 1
    """Episodes that start from the same prompt, for critics that compare them."""
    kl_penalty: str = "k1"
    """What a token pays for leaving the reference policy: k1, k2, k3 or exact; see kl.py."""
    clip_coef: float = 0.2
    """The probability ratio is clipped to 1 ± this."""
    clip_coef_high: float | None = None
    """Clips to 1 + this from above instead (arXiv 2503.14476); None for clip_coef."""
    max_approx_kl: float | None = None
    """After its first step, an update ends where approx_kl is above this (SB3's target_kl)."""
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
        for name in ("vf_clip_coef", "critic_learning_rate", "clip_coef_high", "max_approx_kl"):
            self._check_optional(name, Real, "a finite number above 0", above=0)
        self._check_optional("critic_lambda", Real, "a number from 0 to 1", minimum=0, maximum=1)
        self._check_flag("whiten_advantages")
        self._check_choice("critic", (*CRITICS, CUSTOM))
        self._check_choice("kl_penalty", KL_PENALTIES)
        self._check("critic_warmup", Integral, "a whole number of at least 0", minimum=0)
        self._check_group_size(self.group_size, smallest=1)


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
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_coef: float,
    clip_coef_high: float | None = None,
) -> Tensor:
    """The negative clipped surrogate, averaged over tokens.

    Args:
        logprobs: Log-probabilities of the chosen tokens under the updated policy,
            (batch, num_steps).
        old_logprobs: The same under the policy that sampled them, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.
        clip_coef_high: ε above 1; None for the same.

    Returns:
        A scalar.
    """
    log_ratio = logprobs - old_logprobs
    return masked_mean(-clipped_surrogate(log_ratio, advantages, clip_coef, clip_coef_high), mask)


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


_NEEDS_OF_CRITIC = (
    "set_up", "known", "learned", "after_truncation", "parameters", "state_dict",
    "load_state_dict", "uses_lambda", "network",
)  # fmt: skip
"""What PPO uses of a critic."""


@dataclass(frozen=True)
class _Batch(Batch):
    """The storage of an update; everything in it is from before the update."""

    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens
    values: Tensor  # (num_episodes, num_steps)
    advantages: Tensor  # (num_episodes, num_steps)
    returns: Tensor  # (num_episodes, num_steps)
    known_values: Tensor  # (num_episodes, num_steps), the part of the values that is not trained
    ref_logits: Tensor | None  # (num_episodes, num_steps, vocab), for the exact KL penalty


class PPO(Agent):
    """Proximal policy optimisation of a causal language model, one token per step.

    Each iteration samples whole episodes, gives every token a reward, its credit minus a penalty
    for leaving the reference policy, estimates advantages with GAE, and takes a few epochs of
    clipped gradient steps over whole sequences. The reference policy is a frozen copy of the policy
    at the start. The penalty of a token is ``kl_coef * (logprob - ref_logprob)``. Its sum over an
    episode is an unbiased estimate of the KL divergence, and may be negative for one episode.
    ``kl_penalty="exact"`` takes the noise of the chosen token out of it
    (:func:`textgym.agents.kl.penalty_per_token`).

    Values come from a linear head on the policy, or from another critic
    (:mod:`textgym.agents.critics`).

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
    rollout/kl_exact          The same, with the exact KL divergence of each state; never negative.
    train/policy_loss         Clipped surrogate; mean over all minibatches, as for the next five.
    train/value_loss          Half the squared error of the critic, clipped.
    train/entropy             Mean entropy of the policy over the legal tokens, in nats.
    train/approx_kl           Estimated KL per token from the old policy to the updated one.
    train/clip_fraction       Share of the tokens whose probability ratio was clipped.
    train/grad_norm           Norm of the gradient before it is scaled down.
    train/explained_variance  1 − Var(return − value) / Var(return), before the update.
    train/kl_coef             Weight of the KL penalty in this iteration.
    train/learning_rate       Learning rate.
    train/alarm               1 if KL or entropy runs away, else 0; the first time in a run there is
                              a warning. The rule is in :mod:`textgym.agents.alarm`.
    ========================  ======================================================================

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and not changed. Parameters with ``requires_grad=False`` stay frozen.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. It must have the policy's vocabulary.
        **hyperparameters: The fields of :class:`PPOConfig`. ``critic`` may be an object, a
            :class:`~textgym.agents.critics.Critic`, and ``kl_controller`` a
            :class:`~textgym.agents.kl_control.KLController`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name = "PPO"
    config_class = PPOConfig
    parts = ("kl_controller", "sampler", "critic")
    config: PPOConfig

    def _iterate(self, env: VectorEnv) -> dict[str, float]:
        """Run one iteration, from the rollout to the last optimizer step; returns its scalars."""
        config, kl_coef, processes = self.config, self.kl_controller.coef, self.processes
        num_episodes = config.episodes_per_iteration

        # Rollout: whole episodes. Prompts are padded on the left, completions on the right.
        rollout = collect_episodes(
            self.policy,
            env,
            num_episodes,
            generator=self._generators["tokens"],
            seed_generator=self._generators["episodes"],
            group_size=config.group_size,
            processes=processes,
            sampler=self.sampler,
        ).to(config.device)
        mask = rollout.completion_mask  # (num_episodes, num_steps)
        self.num_timesteps += int(processes.total(mask.sum()))

        # Log-probabilities and values, (num_episodes, num_steps). In bfloat16, those of the rollout
        # are rounded differently (its forward has a cache), and the first ratio must be 1.
        with torch.no_grad():
            ref_logits = self.ref_policy.completion_logits(*rollout.texts)
            old = self.policy.compare(*rollout.texts, ref_logits)

        # Rewards, values and advantages, (num_episodes, num_steps).
        penalty = penalty_per_token(
            config.kl_penalty, old.logprobs, old.ref_logprobs, old.kl, mask, config.gamma
        )
        rewards = rollout.credit - kl_coef * penalty
        # In any process: all of them must make the same passes over sharded weights.
        if processes.any(bool(rollout.truncated.any())):
            rewards = rewards + config.gamma * self.critic.after_truncation(rollout)
        self.critic.generator = processes.own_generator(self._generators["critic"])
        with torch.no_grad():
            known_values = self.critic.known(rollout, rewards)
            values = known_values + self.critic.learned(rollout.texts, old)
        gae_lambda = config.gae_lambda if self.critic.uses_lambda else 1.0
        advantages, returns = gae(rewards, values, mask, config.gamma, gae_lambda)
        if config.critic_lambda is not None:
            _, returns = gae(rewards, values, mask, config.gamma, config.critic_lambda)
        scale = torch.ones(())
        if config.whiten_advantages:
            shift, scale = whitening(processes.concatenate(advantages[mask]))
            advantages = ((advantages - shift) * scale).masked_fill(~mask, 0.0)
        advantages, about_sampler = self._importance_weighted(advantages, rollout, old.logprobs)

        # Update: epochs of minibatches of whole episodes.
        kept_logits = ref_logits if config.kl_penalty == "exact" else None
        del ref_logits  # They may take more memory than a minibatch.
        batch = _Batch(
            *rollout.texts, old.logprobs, values, advantages, returns, known_values, kept_logits
        )
        is_warming_up = len(self.history) < config.critic_warmup
        clip_coefs = config.clip_coef, config.clip_coef_high
        means = ScalarMeans()
        minibatches = batch.minibatches(
            config.num_epochs, self._own_minibatch_size, self._generators["minibatches"]
        )
        for step, mb in enumerate(minibatches):
            new = (
                self.policy.evaluate(*mb.texts)
                if mb.ref_logits is None
                else self.policy.compare(*mb.texts, mb.ref_logits)
            )
            mb_mask = mb.completion_mask
            share = processes.token_share(mb_mask)  # 1 for a single process
            log_ratio = (new.logprobs - mb.logprobs).detach()
            approx_kl = processes.mean(share * masked_mean(kl_estimate(log_ratio), mb_mask))
            is_too_far = config.max_approx_kl is not None and approx_kl > config.max_approx_kl
            if is_too_far and step > 0:  # Before the first step, approx_kl is rounding.
                break
            pg_loss = policy_loss(new.logprobs, mb.logprobs, mb.advantages, mb_mask, *clip_coefs)
            new_values = mb.known_values + self.critic.learned(mb.texts, new)
            v_loss = value_loss(new_values, mb.values, mb.returns, mb_mask, config.vf_clip_coef)
            entropy = masked_mean(new.entropy, mb_mask)
            loss = pg_loss + config.vf_coef * v_loss
            if isinstance(new, Comparison):  # The direct part, in the unit of the advantages.
                loss = loss + kl_coef * scale * masked_mean(new.kl, mb_mask)
            if config.ent_coef:  # A weight of 0 would still cost the gradient of the entropy.
                loss = loss - config.ent_coef * entropy

            terms = {"the policy loss": pg_loss, "the value loss": v_loss, "the entropy": entropy}
            self.optimizer.zero_grad()
            (share * loss).backward(inputs=self._critic_parameters if is_warming_up else None)
            processes.average_gradients(self.trained_parameters.values())
            grad_norm, *_ = [
                clip_gradients(group["params"], config.max_grad_norm, terms)
                for group in self.optimizer.param_groups
            ]
            self.optimizer.step()

            clipped = is_clipped(log_ratio, *clip_coefs).float()
            means.add(
                {
                    "train/policy_loss": share * pg_loss,
                    "train/value_loss": share * v_loss,
                    "train/entropy": share * entropy,
                    "train/approx_kl": approx_kl,
                    "train/clip_fraction": share * masked_mean(clipped, mb_mask),
                    "train/grad_norm": grad_norm,
                }
            )

        kl_per_episode = processes.mean((old.logprobs - old.ref_logprobs).sum(dim=1).mean()).item()
        if not is_warming_up:  # The policy has not moved, whatever the weight.
            self.kl_controller.update(kl_per_episode, num_episodes)
        return {
            **rollout.scalars(processes),
            **processes.means(about_sampler),
            "rollout/kl": kl_per_episode,
            "rollout/kl_exact": processes.mean(old.kl.sum(dim=1).mean()).item(),
            **processes.means(means.means()),
            "train/explained_variance": explained_variance(
                processes.concatenate(values[mask]), processes.concatenate(returns[mask])
            ),
            "train/kl_coef": kl_coef,
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _set_up_parts(self, own_parts: dict[str, Any], checkpoint: dict[str, Any] | None) -> None:
        super()._set_up_parts(own_parts, checkpoint)
        own_critic = own_part("critic", self.config.critic, own_parts)
        if self.config.critic == CUSTOM:
            check_part("critic", own_critic, _NEEDS_OF_CRITIC, "textgym.agents.Critic")
        self.critic: Critic = CRITICS[self.config.critic]() if own_critic is None else own_critic
        self.critic.set_up(self)
        if checkpoint is not None:
            self._restore_critic(checkpoint)
        self._check_critic()
        if self.critic.network is not None:
            self.processes.synchronize(self.critic.network)  # As the policy: it may be random.
            self._train_too("critic", self.critic.network, self.config.critic_learning_rate)

    def _restore_critic(self, checkpoint: dict[str, Any]) -> None:
        """Load the critic's state; another critic than the saved one begins anew, if it can."""
        chosen = self.config.critic
        saved = checkpoint["hyperparameters"].get("critic", chosen)
        if saved != chosen:
            had_network = any(name.startswith("critic.") for name in checkpoint["trained"])
            if had_network or chosen == "separate" or self.critic.network is not None:
                remedy = f"the checkpoint has other weights, those of {saved!r}: leave it out."
                raise InvalidArgumentError("critic", chosen, remedy)
            return
        try:
            self.critic.load_state_dict(checkpoint["critic"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if chosen != CUSTOM:
                raise
            kind = type(self.critic).__name__
            remedy = (
                f"it cannot take over the state in the checkpoint ({first_line(error)}): pass an "
                "object like the one that the agent was made with."
            )
            raise InvalidArgumentError("critic", kind, remedy) from error

    def _check_critic(self) -> None:
        """Refuse settings that would have no effect with this critic."""
        config, kind = self.config, type(self.critic).__name__
        if self.critic.network is None and config.critic_learning_rate is not None:
            remedy = f"must be None: {kind} has no network of its own."
            raise InvalidArgumentError("critic_learning_rate", config.critic_learning_rate, remedy)
        if self._critic_parameters:
            return
        for name, without in (("critic_warmup", 0), ("critic_lambda", None)):
            if getattr(config, name) != without:
                remedy = f"must be {without}: {kind} learns nothing."
                raise InvalidArgumentError(name, getattr(config, name), remedy)
        if not any(parameter.requires_grad for parameter in self.policy.model.parameters()):
            remedy = "learns nothing, and all parameters of the policy are frozen: nothing is left."
            raise InvalidArgumentError("critic", kind, remedy)

    @property
    def _critic_parameters(self) -> list[nn.Parameter]:
        """What the critic trains, without what is frozen."""
        return [one for one in self.critic.parameters() if one.requires_grad]

    def _state_of_parts(self) -> dict[str, Any]:
        state = super()._state_of_parts()
        if self.critic.network is None:  # The snapshot has the weights of a network.
            state["critic"] = copy.deepcopy(self.critic.state_dict())
        return state

    def _restore_parts(self, state: dict[str, Any]) -> None:
        super()._restore_parts(state)
        if "critic" in state:
            self.critic.load_state_dict(state["critic"])

    def _checkpoint(self) -> dict[str, Any]:
        return {**super()._checkpoint(), "critic": self.critic.state_dict()}
