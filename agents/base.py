"""What the bundled agents have in common: set-up, the loop of learning, prediction, checkpoints.

An agent's own file holds what makes it that agent: its hyperparameters, its mathematics, and how
it learns from a rollout.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.memory import keep_freed_memory

from .checkpoint import describe_model, model_from_description, read_checkpoint, write_checkpoint
from .distribution import ActionRules, sample
from .kl import AdaptiveKLController
from .metrics import MetricsLog, TrainingProgress, fresh_log_dir
from .policy import LanguageModelPolicy
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

__all__ = ["Agent", "AgentConfig", "Batch"]


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Hyperparameters that every agent has; a subclass adds its own.

    Raises:
        InvalidArgumentError: If a value is out of its range.
    """

    episodes_per_iteration: int = 16
    """Episodes sampled between two updates; a multiple of the environment's rows."""
    learning_rate: float = 5e-5
    """Learning rate of AdamW, constant."""
    num_epochs: int = 4
    """Passes over the episodes of an iteration."""
    minibatch_size: int | None = 4
    """Episodes per gradient step; None: all of the iteration."""
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
    seed: int = 0
    """Seeds every random stream of the agent."""
    device: str = "cpu"
    """Where the models live, as torch names it."""
    dtype: str | None = None
    """Autocast dtype of the models: "bfloat16", or None for float32."""
    log_dir: str | None = None
    """Folder of metrics.jsonl and the TensorBoard files; None: a fresh folder below runs/."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_iteration", "num_epochs"):
            self._check(name, Integral, "a whole number of at least 1", minimum=1)
        if self.minibatch_size is not None:
            self._check("minibatch_size", Integral, "a whole number of at least 1", minimum=1)
        self._check("seed", Integral, "a whole number of at least 0", minimum=0)
        for name in ("learning_rate", "kl_horizon", "max_grad_norm", "temperature"):
            self._check(name, Real, "a finite number above 0", above=0)
        for name in ("ent_coef", "kl_coef"):
            self._check(name, Real, "a finite number of at least 0", minimum=0)
        if self.kl_target is not None:
            self._check("kl_target", Real, "a finite number above 0, or None", above=0)
        if (self.minibatch_size or 1) > self.episodes_per_iteration:
            raise InvalidArgumentError(
                "minibatch_size",
                self.minibatch_size,
                f"must be at most episodes_per_iteration={self.episodes_per_iteration}.",
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

    def _check_flag(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise InvalidArgumentError(name, getattr(self, name), "must be True or False.")

    @classmethod
    def from_keywords(cls, **hyperparameters: Any) -> Self:
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


@dataclass(frozen=True)
class Batch:
    """What an update needs of a rollout; the page of rollout.py draws the layout.

    A subclass adds what its agent's loss looks at: one number per step, (num_episodes, num_steps),
    or one per episode, (num_episodes,).
    """

    input_ids: Tensor  # (num_episodes, num_tokens) int64
    attention_mask: Tensor  # (num_episodes, num_tokens) bool
    completion_mask: Tensor  # (num_episodes, num_steps) bool

    @property
    def texts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and completion mask: what a policy evaluates."""
        return self.input_ids, self.attention_mask, self.completion_mask

    def minibatch(self, indices: Tensor) -> Self:
        """Some of the episodes, without the columns that all of them pad."""
        rows = {
            field.name: getattr(self, field.name)[indices] for field in dataclasses.fields(self)
        }
        padded_steps = int((~rows["completion_mask"].any(dim=0)).sum())
        padded_front = int(rows["attention_mask"].any(dim=0).int().argmax())
        tokens = slice(padded_front, self.input_ids.shape[1] - padded_steps)
        steps = slice(0, self.completion_mask.shape[1] - padded_steps)
        for name, values in rows.items():
            if values.ndim == 2:
                of_tokens = name in ("input_ids", "attention_mask")
                rows[name] = values[:, tokens if of_tokens else steps]
        return type(self)(**rows)


AnyBatch = TypeVar("AnyBatch", bound=Batch)


class Agent(ABC):
    """An agent that trains a causal language model on whole episodes, one token per step.

    Each iteration samples episodes, learns from them (:meth:`_learn_from`, the part that a
    subclass writes), and adapts the weight of the KL penalty. The reference policy is a frozen
    copy of the policy at the start.

    All randomness comes from ``seed``, in separate streams for prompts, tokens and minibatches:
    agents with equal seeds see equal prompts in every iteration, however differently they sample.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and stays as it is.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. Its tokenizer must be the policy's.
        **hyperparameters: The fields of the class's ``config_class``.

    Attributes:
        name: What the agent is called in progress bars, log folders and checkpoints.
        config_class: What its hyperparameters are.
        config: Their values.
        policy: The policy that is trained.
        ref_policy: The frozen one.
        history: One row of scalars per iteration.
        num_timesteps: Tokens stepped in the environment.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    config: AgentConfig

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: gym.Env | VectorEnv,
        **hyperparameters: Any,
    ) -> None:
        from textgym.models.loading import load_language_model  # on use: slow to import

        config = self.config_class.from_keywords(**hyperparameters)
        vector_env = as_vector_env(env)
        # The parameters, and their gradients, are float32 even if the weights come in bfloat16:
        # a small step would be lost in rounding.
        try:
            model = copy.deepcopy(load_language_model(policy)).float()
        except InvalidArgumentError as error:
            raise InvalidArgumentError("policy", policy, error.remedy) from None
        self._set_up(model, action_rules(vector_env), vector_env, config)

    def _set_up(
        self,
        model: PreTrainedModel,
        rules: ActionRules,
        env: VectorEnv | None,
        config: AgentConfig,
    ) -> None:
        if env is not None:
            check_num_episodes(
                "episodes_per_iteration", config.episodes_per_iteration, env.num_envs
            )
        self.config = config
        self.env = env
        if config.device == "cpu":
            keep_freed_memory()
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
        if config.log_dir is None:
            self.log_dir = fresh_log_dir(prefix=self.name.lower())
        else:
            self.log_dir = Path(config.log_dir)
        self.num_timesteps = 0
        self.history: list[dict[str, float]] = []
        self._seconds = 0.0

    @property
    def _group_size(self) -> int:
        """How many episodes start from the same prompt."""
        return 1

    # -- Training

    def learn(
        self,
        total_timesteps: int,
        progress_bar: bool = False,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
    ) -> Self:
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
                "env", None, f"training needs an environment: {self.name}.load(path, env=...)."
            )
        start = self.num_timesteps
        with (
            MetricsLog(self.log_dir, dataclasses.asdict(self.config), self.history) as log,
            TrainingProgress(total_timesteps, progress_bar, title=self.name) as progress,
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
        """Roll out and learn from it; returns the row of scalars."""
        started = time.perf_counter()
        rollout = collect_episodes(
            self.policy,
            env,
            self.config.episodes_per_iteration,
            generator=self._generators["tokens"],
            seed_generator=self._generators["episodes"],
            group_size=self._group_size,
        )
        kl_coef = self.kl_controller.coef
        scalars = self._learn_from(rollout)
        self.kl_controller.update(scalars["rollout/kl"], len(rollout.scores))
        self.num_timesteps += int(rollout.episode_lengths.sum())
        self._seconds += time.perf_counter() - started
        row = {
            "time/iteration": len(self.history) + 1,
            "time/total_timesteps": self.num_timesteps,
            "time/seconds": self._seconds,
            "rollout/score_mean": rollout.scores.mean().item(),
            "rollout/score_std": rollout.scores.std(correction=0).item(),
            "rollout/episode_length": rollout.episode_lengths.float().mean().item(),
            "rollout/return_mean": rollout.env_returns.mean().item(),
            **scalars,
            "train/kl_coef": kl_coef,
            "train/learning_rate": self.config.learning_rate,
        }
        self.history.append(row)
        return row

    @abstractmethod
    def _learn_from(self, rollout: Rollout) -> dict[str, float]:
        """Update the policy; returns the agent's own scalars, ``rollout/kl`` among them."""

    def _texts(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and completion mask, where the models live."""
        device = self.config.device
        return (
            rollout.input_ids.to(device),
            rollout.attention_mask.to(device),
            rollout.completion_mask.to(device),
        )

    def _minibatches(self, batch: AnyBatch) -> Iterator[AnyBatch]:
        """All minibatches of all epochs, shuffled anew in each."""
        num_episodes = len(batch.input_ids)
        for _ in range(self.config.num_epochs):
            order = torch.randperm(num_episodes, generator=self._generators["minibatches"])
            size = self.config.minibatch_size or num_episodes
            for indices in order.to(self.config.device).split(size):
                yield batch.minibatch(indices)

    def _gradient_step(self, loss: Tensor) -> float:
        """Step down the gradient; returns its norm before it is scaled down."""
        self.optimizer.zero_grad()
        loss.backward()
        parameters = list(self.policy.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients, error_if_nonfinite=True)
        if grad_norm > self.config.max_grad_norm:  # Else all would be multiplied by 1.
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, grad_norm)
        self.optimizer.step()
        return grad_norm.item()

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
        logits = self.policy.next_token_logits(ids, mask).cpu()
        logprobs = self.policy.next_token_logprobs(logits, torch.tensor(rules.min_new_tokens))
        if action_masks is not None:
            legal = np.atleast_2d(np.asarray(action_masks, dtype=bool))  # (num_envs, num_actions)
            logprobs[:, : rules.num_actions].masked_fill_(torch.from_numpy(~legal), -torch.inf)
        if deterministic:
            actions = logprobs.argmax(dim=-1)
        else:
            actions = sample(logprobs.log_softmax(dim=-1), self._generators["predict"])
        return (actions[0] if is_single else actions).numpy(), None

    def save(self, path: str | Path) -> None:
        """Write all that an exact continuation needs into one file."""
        write_checkpoint(
            path,
            self.name,
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
    ) -> Self:
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
        contents = read_checkpoint(path, cls.name)
        vector_env = None if env is None else as_vector_env(env)
        changes = {
            name: value
            for name, value in (("device", device), ("log_dir", log_dir))
            if value is not None
        }
        config = cls.config_class.from_keywords(**(contents["hyperparameters"] | changes))
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
