"""Token-level PPO for language models, in one file: read it from top to bottom.

Hyperparameters, the mathematics as pure functions, then the agent: roll out, label, update.
The form is CleanRL's (https://github.com/vwxyzjn/cleanrl); the algorithm is Schulman et al. 2017,
"Proximal Policy Optimization Algorithms", arXiv 1707.06347, with the per-token KL penalty of
Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", arXiv 1909.08593.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.errors import InvalidArgumentError

from .checkpoint import describe_model, model_from_description, read_checkpoint, write_checkpoint
from .metrics import MetricsLog, TrainingProgress, fresh_log_dir
from .policy import ActionRules, LanguageModelPolicy
from .rollout import (
    Rollout,
    action_rules,
    as_vector_env,
    check_num_episodes,
    collect_episodes,
    left_padded,
)

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv
    from transformers import PreTrainedModel

__all__ = [
    "PPO",
    "AdaptiveKLController",
    "PPOConfig",
    "gae",
    "masked_mean",
    "masked_whiten",
    "policy_loss",
    "value_loss",
]


# --- Hyperparameters ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Hyperparameters of :class:`PPO`.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    episodes_per_iteration: int = 16
    """Episodes sampled between two updates; a multiple of the environment's rows."""
    learning_rate: float = 5e-5
    """Learning rate of AdamW, constant."""
    num_epochs: int = 4
    """Passes over the episodes of an iteration."""
    minibatch_size: int = 4
    """Episodes per gradient step."""
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
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.1
    """Weight of the KL penalty per token, at the start if it is adapted."""
    kl_target: float | None = 6.0
    """KL per episode, in nats, that the penalty's weight steers to; None keeps the weight fixed."""
    kl_horizon: float = 160.0
    """Episodes over which that weight can at most fall by a fifth or rise by a fifth."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    temperature: float = 1.0
    """Divides the logits of the policy and the reference policy, in sampling and in training."""
    whiten_advantages: bool = True
    """Bring the advantages of an iteration to mean 0 and variance 1."""
    seed: int = 0
    """Seeds every random stream of the agent."""
    device: str = "cpu"
    """Where the models live, as torch names it."""
    dtype: str | None = None
    """Autocast dtype of the models: "bfloat16", or None for float32."""
    log_dir: str | None = None
    """Folder of metrics.jsonl and the TensorBoard files; None: a fresh folder below runs/."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_iteration", "num_epochs", "minibatch_size"):
            self._check(name, Integral, "a whole number of at least 1", minimum=1)
        self._check("seed", Integral, "a whole number of at least 0", minimum=0)
        for name in ("learning_rate", "clip_coef", "kl_horizon", "max_grad_norm", "temperature"):
            self._check(name, Real, "a finite number above 0", above=0)
        for name in ("vf_coef", "ent_coef", "kl_coef"):
            self._check(name, Real, "a finite number of at least 0", minimum=0)
        for name in ("gamma", "gae_lambda"):
            self._check(name, Real, "a number from 0 to 1", minimum=0, maximum=1)
        for name in ("vf_clip_coef", "kl_target"):
            if getattr(self, name) is not None:
                self._check(name, Real, "a finite number above 0, or None", above=0)
        if self.minibatch_size > self.episodes_per_iteration:
            raise InvalidArgumentError(
                "minibatch_size",
                self.minibatch_size,
                f"must be at most episodes_per_iteration={self.episodes_per_iteration}.",
            )
        if not isinstance(self.whiten_advantages, bool):
            raise InvalidArgumentError(
                "whiten_advantages", self.whiten_advantages, "must be True or False."
            )
        if self.dtype not in (None, "bfloat16", torch.bfloat16):
            # float16 would need loss scaling, and float32 is what None means.
            raise InvalidArgumentError("dtype", self.dtype, 'must be "bfloat16" or None.')
        # On use: transformers takes seconds to import, and reading the defaults needs none of it.
        from textgym.models.loading import parse_device

        object.__setattr__(self, "device", str(parse_device(self.device)))
        object.__setattr__(self, "dtype", self.dtype and "bfloat16")
        object.__setattr__(self, "log_dir", self.log_dir and str(self.log_dir))

    def _check(
        self,
        name: str,
        kind: type,
        remedy: str,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        above: float = -math.inf,
    ) -> None:
        value: Any = getattr(self, name)
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and minimum <= value <= maximum):
            raise InvalidArgumentError(name, value, f"must be {remedy}.")
        if value <= above:
            raise InvalidArgumentError(name, value, f"must be {remedy}.")

    @classmethod
    def from_keywords(cls, **hyperparameters: Any) -> PPOConfig:
        """Like the constructor, with an answer to a misspelt name.

        Raises:
            InvalidArgumentError: If there is no such hyperparameter, or a value is out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in hyperparameters.items():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
                raise InvalidArgumentError(
                    name, value, f"no such hyperparameter; did you mean {', '.join(close)}?"
                )
        return cls(**hyperparameters)


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


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_coef: float
) -> Tensor:
    """The clipped surrogate of PPO (arXiv 1707.06347, equation 7), negated, as a mean over tokens.

    Args:
        logprobs: Of the chosen tokens under the policy that is updated, (batch, num_steps).
        old_logprobs: Under the policy that sampled them, (batch, num_steps).
        advantages: (batch, num_steps).
        mask: bool (batch, num_steps).
        clip_coef: ε.

    Returns:
        A scalar.
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return masked_mean(-torch.minimum(advantages * ratio, advantages * clipped), mask)


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


class AdaptiveKLController:
    """Steers the weight of the KL penalty so that the KL approaches a target.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2: the weight is multiplied by
    1 + K·clip(KL / target − 1, −0.2, 0.2). There K is 0.1 per update; here it is
    ``num_episodes / horizon``, so that it does not depend on how the episodes are batched.

    Args:
        coef: The weight at the start.
        target: KL per episode in nats; None keeps the weight as it is.
        horizon: In episodes.
    """

    def __init__(self, coef: float, target: float | None, horizon: float) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight to the KL measured on so many episodes."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * num_episodes / self.horizon


# --- Agent ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """What the update needs of a rollout; the page of rollout.py draws the layout."""

    input_ids: Tensor  # (num_episodes, num_tokens) int64
    attention_mask: Tensor  # (num_episodes, num_tokens) bool
    completion_mask: Tensor  # (num_episodes, num_steps) bool
    logprobs: Tensor  # (num_episodes, num_steps) of the chosen tokens, before the update
    values: Tensor  # (num_episodes, num_steps) before the update
    advantages: Tensor  # (num_episodes, num_steps)
    returns: Tensor  # (num_episodes, num_steps)

    def minibatch(self, indices: Tensor) -> _Batch:
        """Some of the episodes, without the columns that all of them pad."""
        rows = _Batch(*(getattr(self, field.name)[indices] for field in dataclasses.fields(self)))
        padded_steps = int((~rows.completion_mask.any(dim=0)).sum())
        padded_front = int(rows.attention_mask.any(dim=0).int().argmax())
        tokens = slice(padded_front, rows.input_ids.shape[1] - padded_steps)
        steps = slice(0, rows.completion_mask.shape[1] - padded_steps)
        return _Batch(
            rows.input_ids[:, tokens],
            rows.attention_mask[:, tokens],
            rows.completion_mask[:, steps],
            rows.logprobs[:, steps],
            rows.values[:, steps],
            rows.advantages[:, steps],
            rows.returns[:, steps],
        )


class PPO:
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

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: gym.Env | VectorEnv,
        **hyperparameters: Any,
    ) -> None:
        from textgym.models.loading import load_language_model  # on use: slow to import

        config = PPOConfig.from_keywords(**hyperparameters)
        vector_env = as_vector_env(env)
        # The parameters, and their gradients, are float32 even if the weights come in bfloat16:
        # a small step would be lost in rounding.
        try:
            model = copy.deepcopy(load_language_model(policy)).float()
        except InvalidArgumentError as error:
            raise InvalidArgumentError("policy", policy, error.remedy) from None
        self._set_up(model, action_rules(vector_env), vector_env, config)

    def _set_up(
        self, model: PreTrainedModel, rules: ActionRules, env: VectorEnv | None, config: PPOConfig
    ) -> None:
        if env is not None:
            check_num_episodes(
                "episodes_per_iteration", config.episodes_per_iteration, env.num_envs
            )
        self.config = config
        self.env = env
        self.policy = LanguageModelPolicy(
            model.requires_grad_(True),
            rules,
            temperature=config.temperature,
            autocast_dtype=torch.bfloat16 if config.dtype else None,
        ).to(config.device)
        self.ref_policy = copy.deepcopy(self.policy).requires_grad_(False)
        # Without weight decay: it would pull towards zero, and the KL penalty already pulls
        # towards the reference policy, where the policy belongs.
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        self.kl_controller = AdaptiveKLController(
            config.kl_coef, config.kl_target, config.kl_horizon
        )
        streams = ("episodes", "tokens", "minibatches", "predict")
        seeds = np.random.SeedSequence(config.seed).generate_state(len(streams))
        self._generators = {
            name: torch.Generator().manual_seed(int(seed))
            for name, seed in zip(streams, seeds, strict=True)
        }
        self.log_dir = fresh_log_dir() if config.log_dir is None else Path(config.log_dir)
        self.num_timesteps = 0
        self.history: list[dict[str, float]] = []
        self._seconds = 0.0

    # -- Training

    def learn(
        self,
        total_timesteps: int,
        progress_bar: bool = False,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
    ) -> PPO:
        """Train for at least this many more tokens, in whole iterations.

        Args:
            total_timesteps: Tokens to step in the environment; a second call goes on where the
                first one stopped.
            progress_bar: Show a progress bar with the score and the KL.
            callback: Called after each iteration with its row of scalars; False stops.

        Returns:
            The agent.

        Raises:
            InvalidArgumentError: If the agent has no environment.
        """
        if self.env is None:
            raise InvalidArgumentError(
                "env", None, "training needs an environment: PPO.load(path, env=...)."
            )
        start = self.num_timesteps
        with (
            MetricsLog(self.log_dir, dataclasses.asdict(self.config), self.history) as log,
            TrainingProgress(total_timesteps, enabled=progress_bar) as progress,
        ):
            while self.num_timesteps - start < total_timesteps:
                row = self._iterate(self.env)
                log.write(row)
                progress.update(self.num_timesteps - start, row)
                keep_going = callback(row) if callback is not None else None
                if keep_going is not None and not keep_going:
                    break
        return self

    def _iterate(self, env: VectorEnv) -> dict[str, float]:
        """Roll out, label, update; returns the row of scalars."""
        started = time.perf_counter()
        rollout = collect_episodes(
            self.policy,
            env,
            self.config.episodes_per_iteration,
            generator=self._generators["tokens"],
            seed_generator=self._generators["episodes"],
        )
        kl_coef = self.kl_controller.coef
        batch, kl = self._label(rollout)
        losses = self._update(batch)
        self.kl_controller.update(kl, len(rollout.scores))
        self.num_timesteps += int(rollout.episode_lengths.sum())
        self._seconds += time.perf_counter() - started
        mask = batch.completion_mask
        row = {
            "time/iteration": len(self.history) + 1,
            "time/total_timesteps": self.num_timesteps,
            "time/seconds": self._seconds,
            "rollout/score_mean": rollout.scores.mean().item(),
            "rollout/score_std": rollout.scores.std(correction=0).item(),
            "rollout/episode_length": rollout.episode_lengths.float().mean().item(),
            "rollout/kl": kl,
            "rollout/return_mean": rollout.env_returns.mean().item(),
            **losses,
            "train/explained_variance": _explained_variance(
                batch.values[mask], batch.returns[mask]
            ),
            "train/kl_coef": kl_coef,
            "train/learning_rate": self.config.learning_rate,
        }
        self.history.append(row)
        return row

    @torch.no_grad()
    def _label(self, rollout: Rollout) -> tuple[_Batch, float]:
        """Give every token its reward and its advantage; also returns the KL per episode."""
        config = self.config
        texts = (
            rollout.input_ids.to(config.device),
            rollout.attention_mask.to(config.device),
            rollout.completion_mask.to(config.device),
        )
        mask = texts[-1]
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
        device, num_steps = self.config.device, rollout.completion_mask.shape[1]
        ids, mask = rollout.input_ids.to(device), rollout.attention_mask.to(device)
        _, values = self.policy(ids, mask, num_logits=num_steps)
        columns = torch.arange(num_steps)
        is_last = columns == rollout.episode_lengths[:, None] - 1  # (num_episodes, num_steps)
        return values * (is_last & rollout.truncated[:, None]).to(device)

    def _update(self, batch: _Batch) -> dict[str, float]:
        """Epochs of clipped gradient steps; returns the means of their scalars."""
        config = self.config
        scalars = defaultdict(list)
        for _ in range(config.num_epochs):
            order = torch.randperm(
                len(batch.input_ids), generator=self._generators["minibatches"]
            ).to(config.device)
            for indices in order.split(config.minibatch_size):
                minibatch = batch.minibatch(indices)
                mask = minibatch.completion_mask
                new = self.policy.evaluate(minibatch.input_ids, minibatch.attention_mask, mask)
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
                self.optimizer.zero_grad()
                loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(
                    self.policy.parameters(), config.max_grad_norm, error_if_nonfinite=True
                )
                self.optimizer.step()
                with torch.no_grad():
                    log_ratio = new.logprobs - minibatch.logprobs
                    ratio = log_ratio.exp()
                    clipped = ((ratio - 1).abs() > config.clip_coef).float()
                    scalars["train/policy_loss"].append(surrogate.item())
                    scalars["train/value_loss"].append(error.item())
                    scalars["train/entropy"].append(entropy.item())
                    # Never negative, and of low variance: http://joschu.net/blog/kl-approx.html
                    approx_kl = masked_mean(ratio - 1 - log_ratio, mask)
                    scalars["train/approx_kl"].append(approx_kl.item())
                    scalars["train/clip_fraction"].append(masked_mean(clipped, mask).item())
                    scalars["train/grad_norm"].append(grad_norm.item())
        return {name: float(np.mean(values)) for name, values in scalars.items()}

    # -- Use

    @torch.no_grad()
    def predict(
        self,
        observation: dict[str, NDArray[Any]],
        state: None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.int64], None]:
        """Choose the next token, in Stable-Baselines3's manner.

        An observation does not tell where its prompt ends, so EOS is taken as legal unless
        ``action_masks`` says otherwise: make the environment with ``action_mask_in_info=True``
        and pass ``info["action_mask"]``.

        Args:
            observation: ``input_ids`` and ``attention_mask``, both (max_length,) or
                (num_envs, max_length).
            state: Ignored; the policy keeps no state.
            episode_start: Ignored, likewise.
            deterministic: Take the most probable token instead of sampling one.
            action_masks: True or 1 at legal tokens, (vocab,) or (num_envs, vocab).

        Returns:
            The tokens, int64 of shape () or (num_envs,), and None.
        """
        rules, device = self.policy.rules, self.config.device
        is_single = np.ndim(observation["input_ids"]) == 1
        batched = {name: np.atleast_2d(observation[name]) for name in observation}
        ids, mask = (
            torch.from_numpy(x).to(device) for x in left_padded(batched, rules.pad_token_id)
        )
        logits, _ = self.policy.decode(ids, mask)
        logprobs = self.policy.next_token_logprobs(logits.cpu(), rules.min_new_tokens)
        if action_masks is not None:
            legal = np.atleast_2d(np.asarray(action_masks, dtype=bool))  # (num_envs, num_actions)
            logprobs[:, : rules.num_actions].masked_fill_(torch.from_numpy(~legal), -torch.inf)
        if deterministic:
            actions = logprobs.argmax(dim=-1)
        else:
            generator = self._generators["predict"]
            actions = torch.multinomial(logprobs.softmax(dim=-1), 1, generator=generator)[:, 0]
        return (actions[0] if is_single else actions).numpy(), None

    def save(self, path: str | Path) -> None:
        """Write all that an exact continuation needs into one file."""
        write_checkpoint(
            path,
            {
                "hyperparameters": dataclasses.asdict(self.config),
                "rules": dataclasses.asdict(self.policy.rules),
                "model": describe_model(self.policy.model),
                "policy": self.policy.state_dict(),
                "ref_policy": self.ref_policy.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "kl_coef": self.kl_controller.coef,
                "generators": {
                    name: generator.get_state() for name, generator in self._generators.items()
                },
                "num_timesteps": self.num_timesteps,
                "seconds": self._seconds,
                "history": self.history,
            },
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env | VectorEnv | None = None,
        device: str | None = None,
        log_dir: str | Path | None = None,
    ) -> PPO:
        """Restore an agent from :meth:`save`; the model's folder or hub id is not needed.

        With the same kind of environment, training goes on exactly as it would have without the
        stop, as long as the environment's episodes depend on the seed of their reset alone.

        Args:
            path: The file.
            env: To go on training in; without it the agent can only predict.
            device: Instead of the device that was trained on.
            log_dir: Instead of the folder that was logged to.

        Raises:
            InvalidArgumentError: If the file or the environment cannot be used.
        """
        contents = read_checkpoint(path)
        vector_env = None if env is None else as_vector_env(env)
        changes = {
            name: value
            for name, value in (("device", device), ("log_dir", log_dir))
            if value is not None
        }
        config = PPOConfig.from_keywords(**(contents["hyperparameters"] | changes))
        rules = ActionRules(**contents["rules"])
        if vector_env is not None:
            trained, rules = rules, action_rules(vector_env)
            if (rules.num_actions, rules.eos_token_id) != (
                trained.num_actions,
                trained.eos_token_id,
            ):
                raise InvalidArgumentError(
                    "env", env, f"its actions are {rules}, but the agent was trained on {trained}."
                )
        agent = cls.__new__(cls)
        agent._set_up(model_from_description(contents["model"]), rules, vector_env, config)
        agent.policy.load_state_dict(contents["policy"])
        agent.ref_policy.load_state_dict(contents["ref_policy"])
        agent.optimizer.load_state_dict(contents["optimizer"])
        agent.kl_controller.coef = contents["kl_coef"]
        for name, generator in agent._generators.items():
            generator.set_state(contents["generators"][name])
        agent.num_timesteps = contents["num_timesteps"]
        agent.history = contents["history"]
        agent._seconds = contents["seconds"]
        return agent


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(return − value) / Var(return); 0 where the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 0.0 if variance == 0 else 1 - (returns - values).var(correction=0).item() / variance
