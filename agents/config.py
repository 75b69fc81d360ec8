"""The hyperparameters that all agents share, and their checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

from textgym.checks import check_number, check_path, check_whole_number, similar_names
from textgym.errors import InvalidArgumentError

from .inputs import check_folder
from .kl_control import KL_CONTROLLERS, MOST_RELATIVE_ERROR
from .parts import CUSTOM
from .policy import parse_autocast

__all__ = ["AgentConfig"]


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Hyperparameters of every agent; a subclass adds its own.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    episodes_per_iteration: int = 16
    """Episodes sampled per iteration; a multiple of the environment's ``num_envs``."""
    learning_rate: float = 3e-4
    """Learning rate of AdamW, after the warm-up. The default is for short texts, and for models as
    small as the embedded ones; models with billions of weights usually take about a hundredth."""
    warmup_iterations: int = 0
    """Iterations in which the learning rate rises in equal steps to its full value."""
    anneal_iterations: int | None = None
    """Iterations in which the learning rate falls linearly to 0 and stays there; None keeps it."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW. 1e-5 is usual for PPO: see Huang et al. 2022, "The 37 Implementation
    Details of Proximal Policy Optimization", detail 3."""
    num_epochs: int = 4
    """Passes over the episodes of an iteration."""
    minibatch_size: int | None = 4
    """Episodes per gradient step; None takes all episodes of the iteration."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.07
    """Weight of the KL penalty per token; the initial weight if ``kl_target`` is set, of which "pi"
    starts at 1/e."""
    kl_target: float | None = None
    """KL per episode, in nats, that the penalty is steered towards; None keeps ``kl_coef``."""
    kl_horizon: float = 160.0
    """Number of episodes in which the weight can rise or fall by at most about a fifth."""
    kl_controller: str = "ziegler"
    """How the penalty is steered to ``kl_target``: "ziegler", or "pi", which hardly overshoots."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    temperature: float = 1.0
    """Divides the logits of the policy and the reference policy, in sampling and in training."""
    sampler: str = "policy"
    """Who samples the episodes: "policy", or an object such as a client of a vLLM server
    (:class:`textgym.agents.Sampler`). An object adds scalars to the log: those of mismatch.py and
    importance.py."""
    importance_cap: float | None = 2.0
    """Importance weights, which correct for an outside sampler, are cut off at this value of 1 or
    more; None switches the correction off. See importance.py."""
    seed: int = 0
    """Seeds all of the agent's random generators."""
    lora: str | None = None
    """Train only low-rank adapters and the value head: True, a ``peft.LoraConfig``, or its
    arguments as JSON, such as '{"r": 16}'. The reference policy is then the policy with its
    adapters switched off. Needs the extra ``textgym[lora]``."""
    shard: bool = False
    """Split the weights, their gradients and the optimizer's state over several processes (FSDP2),
    instead of a copy in each."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the policy's layers in an update and compute the rest again: saves
    memory at the cost of one more forward pass (docs/scale.md)."""
    undo: bool = True
    """Undo an iteration that is interrupted or fails, by a copy of the trained weights and the
    optimizer's moments. False saves that memory, and such an agent can only be loaded anew."""
    device: str = "cpu"
    """Device of the models, by its torch name."""
    dtype: str | None = None
    """Autocast dtype of the models: "bfloat16", or None for float32."""
    log_dir: str | None = None
    """Folder for metrics.jsonl and TensorBoard files; None makes a new folder in runs/."""
    save_every: int | None = None
    """Iterations between checkpoints, in ``log_dir/checkpoints``; None writes none."""
    save_minutes: float | None = None
    """Minutes between checkpoints, in addition to ``save_every`` or instead of it."""
    save_total_limit: int = 2
    """How many of these checkpoints are kept."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_iteration", "num_epochs"):
            self._check(name, Integral, "a whole number of at least 1", minimum=1)
        self._check("save_total_limit", Integral, "a whole number of at least 1", minimum=1)
        self._check_optional("save_minutes", Real, "a finite number above 0", above=0)
        for name in ("minibatch_size", "anneal_iterations", "save_every"):
            self._check_optional(name, Integral, "a whole number of at least 1", minimum=1)
        object.__setattr__(self, "seed", check_whole_number("seed", self.seed, 0, 2**63 - 1))
        self._check("warmup_iterations", Integral, "a whole number of at least 0", minimum=0)
        for name in ("learning_rate", "adam_eps", "kl_horizon", "max_grad_norm", "temperature"):
            self._check(name, Real, "a finite number above 0", above=0)
        for name in ("ent_coef", "kl_coef"):
            self._check(name, Real, "a finite number of at least 0", minimum=0)
        self._check_optional("kl_target", Real, "a finite number above 0", above=0)
        self._check_choice("kl_controller", (*KL_CONTROLLERS, CUSTOM))
        self._check_steering()
        self._check_flag("shard")
        if self.shard and self.lora is not None:
            raise InvalidArgumentError("shard", True, "must be False with adapters.")
        if self.shard and self.sampler != "policy":
            raise InvalidArgumentError("shard", True, "must be False with a sampler of your own.")
        self._check_choice("sampler", ("policy", CUSTOM))
        self._check_optional("importance_cap", Real, "a finite number of at least 1", minimum=1)
        self._check_flag("gradient_checkpointing")
        self._check_flag("undo")
        if (self.minibatch_size or 1) > self.episodes_per_iteration:
            raise InvalidArgumentError(
                "minibatch_size",
                self.minibatch_size,
                f"must be at most episodes_per_iteration={self.episodes_per_iteration}.",
            )
        parse_autocast(self.dtype)
        # Imported here: it takes seconds, and whoever only reads the defaults does not need it.
        from textgym.models.loading import parse_device

        from .lora import lora_as_text

        object.__setattr__(self, "lora", lora_as_text(self.lora))
        object.__setattr__(self, "device", str(parse_device(self.device)))
        object.__setattr__(self, "dtype", self.dtype and "bfloat16")
        if self.log_dir is not None:
            check_folder("log_dir", self.log_dir)
            object.__setattr__(self, "log_dir", str(check_path("log_dir", self.log_dir)))

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
        if not isinstance(value, kind):
            raise InvalidArgumentError(name, value, f"must be {remedy}.")
        number = check_number(name, value, minimum, maximum, above, f"must be {remedy}.")
        if not isinstance(value, int | float):  # NumPy's numbers, which JSON does not take.
            object.__setattr__(self, name, int(number) if kind is Integral else number)

    def _check_steering(self) -> None:
        """Make sure that the KL controller can move the weight, and that it stays above 0."""
        if self.kl_target is None:
            if self.kl_controller not in ("ziegler", CUSTOM):
                remedy = "needs kl_target, which it steers to: set that, or leave this out."
                raise InvalidArgumentError("kl_controller", self.kl_controller, remedy)
            return
        if self.kl_controller == CUSTOM:
            remedy = "must be None with a kl_controller of your own, which would not see it."
            raise InvalidArgumentError("kl_target", self.kl_target, remedy)
        if self.kl_coef == 0:
            remedy = "must be above 0 with kl_target: the weight is multiplied, and would stay 0."
            raise InvalidArgumentError("kl_coef", self.kl_coef, remedy)
        least = MOST_RELATIVE_ERROR * self.episodes_per_iteration
        if self.kl_controller == "ziegler" and self.kl_horizon <= least:
            raise InvalidArgumentError(
                "kl_horizon",
                self.kl_horizon,
                f"must be above {least:g} with episodes_per_iteration="
                f"{self.episodes_per_iteration}: otherwise one update can turn the weight of the "
                "penalty negative.",
            )

    def _check_optional(self, name: str, kind: type, remedy: str, **limits: float) -> None:
        if getattr(self, name) is not None:
            self._check(name, kind, f"{remedy}, or None", **limits)

    def _check_flag(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise InvalidArgumentError(name, getattr(self, name), "must be True or False.")

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            listed = ", ".join(f'"{choice}"' for choice in choices if choice != CUSTOM)
            raise InvalidArgumentError(name, getattr(self, name), f"must be one of {listed}.")

    def _check_group_size(self, group_size: int, smallest: int) -> None:
        remedy = f"a whole number of at least {smallest}"
        self._check("group_size", Integral, remedy, minimum=smallest)
        if self.episodes_per_iteration % group_size:
            raise InvalidArgumentError(
                "group_size",
                group_size,
                f"must divide episodes_per_iteration={self.episodes_per_iteration}.",
            )

    def learning_rate_factor(self, iteration: int) -> float:
        """What the learning rates are multiplied with in an iteration, counted from 1.

        With a warm-up of 4 iterations and annealing over 10, the factors are those of::

            warm-up    1/4 2/4 3/4  1   1   1   1    1    1    1     1   …
            annealing   1  .9  .8  .7  .6  .5  .4   .3   .2   .1     0   …
        """
        factor = 1.0
        if iteration < self.warmup_iterations:
            factor *= iteration / self.warmup_iterations
        if self.anneal_iterations is not None:
            factor *= max(0.0, 1 - (iteration - 1) / self.anneal_iterations)
        return factor

    @classmethod
    def from_keywords(cls, **hyperparameters: Any) -> Self:
        """Like the constructor, but suggests the right name for a misspelt one.

        Raises:
            InvalidArgumentError: If a hyperparameter is unknown, or its value is out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in hyperparameters.items():
            if name not in names:
                close = ", ".join(similar_names(name, names, n=3, cutoff=0.5))
                remedy = f"did you mean {close}?" if close else f"choose from {', '.join(names)}"
                raise InvalidArgumentError(name, value, f"no such hyperparameter; {remedy}")
        return cls(**hyperparameters)
