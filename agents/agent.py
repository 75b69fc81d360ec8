"""What all agents have in common: set-up, the training loop, prediction.

Each agent's own file has its hyperparameters, its mathematics, and one method that runs an
iteration, from the rollout to the last optimizer step.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.errors import InvalidArgumentError

from .alarm import sound_alarm
from .checkpoint import is_described
from .config import AgentConfig
from .distribution import ActionRules, sample
from .environment import (
    action_rules,
    as_vector_env,
    check_context,
    check_num_episodes,
    check_vocabulary,
    left_padded,
    name_of_policy,
)
from .importance import weighted_advantages
from .inputs import check_action_masks, check_learn, check_observation
from .kl_control import KLController, make_kl_controller
from .lora import AdapterOffPolicy, add_lora, check_gradient, weights_kept
from .metrics import MetricsLog, TrainingProgress, fresh_log_dir
from .mismatch import mismatch, sound_mismatch
from .parts import CUSTOM, check_part, own_part, split_own_parts
from .policy import LanguageModelPolicy, in_float32, parse_autocast
from .processes import Processes
from .sampling import Sampler, as_sampler
from .saving import Saving
from .sharding import shard
from .snapshot import Snapshot

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv
    from torch import Tensor
    from transformers import PreTrainedModel

    from .rollout import Rollout

__all__ = ["Agent"]


class Agent(Saving):
    """Trains a causal language model on whole episodes, one token per step.

    Each iteration samples episodes, updates the policy, and adapts the weight of the KL penalty; a
    subclass writes it in :meth:`_iterate`. The reference policy is a frozen copy of the policy at
    the start.

    All randomness comes from ``seed``, with separate generators for prompts, tokens and
    minibatches. So agents with equal seeds see equal prompts in every iteration, even if they
    sample different tokens.

    An iteration that is interrupted, by Ctrl-C or by any error, is undone: the agent is back in the
    state after the last finished iteration, and can be saved or trained on from there. With
    ``undo=False`` it cannot: what it learned since its last checkpoint is lost.

    Several processes that ``accelerate launch`` has started train one agent together; see
    :mod:`textgym.agents.processes`. The main one logs and saves.

    Args:
        policy: ``"embedded"``, a folder, a hub id, or a loaded causal language model. A loaded
            model is copied and not changed. Parameters with ``requires_grad=False`` stay frozen.
            A quantised one needs ``lora``, stays on its device, and keeps its weights.
        env: A single environment, or a vector environment in autoreset mode ``DISABLED`` whose
            finished rows wait. It must have the policy's vocabulary.
        **hyperparameters: The fields of the class's ``config_class``. Those in ``parts`` also take
            an object, such as ``kl_controller=MyController()``.

    Attributes:
        name: The agent's name in progress bars, log folders and checkpoints.
        config_class: The class of its hyperparameters.
        parts: The hyperparameters that name a part of the algorithm, and also take an object.
        config: Their values.
        processes: The processes that train this agent; usually one.
        policy: The policy that is trained.
        ref_policy: The frozen reference policy. With adapters it is the policy without them.
        base_model: Name or folder of the model that the policy started as; None for an object.
        trained_parameters: The policy's parameters that are not frozen, by name.
        history: One row of scalars per iteration.
        num_timesteps: Number of tokens generated in training.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    parts: ClassVar[tuple[str, ...]] = ("kl_controller", "sampler")
    config: AgentConfig

    def __init__(
        self,
        policy: str | Path | PreTrainedModel,
        env: gym.Env | VectorEnv,
        **hyperparameters: Any,
    ) -> None:
        from textgym.models.loading import load_language_model  # Imported here: slow.
        from textgym.models.placement import is_quantized

        plain, own_parts = split_own_parts(hyperparameters, self.parts)
        config = self.config_class.from_keywords(**plain)
        vector_env = as_vector_env(env)
        value = name_of_policy(policy)
        try:
            model = load_language_model(policy)
        except InvalidArgumentError as error:
            raise InvalidArgumentError("policy", value, error.remedy) from None
        check_vocabulary(policy, model, vector_env)
        check_context("policy", value, model, vector_env)
        model = copy.deepcopy(model)
        if config.lora is None:  # Frozen weights may stay in a smaller dtype.
            model = in_float32(model, "policy", "pass lora=True to train adapters on it")
        self.base_model = _lasting_name(policy) if isinstance(policy, str | Path) else None
        # Below adapters, a model that has a name or is quantised is no part of a checkpoint.
        is_apart = config.lora is not None and (self.base_model is not None or is_quantized(model))
        self._can_be_rebuilt = is_apart or is_described(model)
        self._set_up(model, action_rules(vector_env), vector_env, config, own_parts)

    def _set_up(
        self,
        model: PreTrainedModel,
        rules: ActionRules,
        env: VectorEnv | None,
        config: AgentConfig,
        own_parts: dict[str, Any],
        checkpoint: dict[str, Any] | None = None,
    ) -> None:
        from textgym.models.placement import is_quantized  # Imported here: slow.

        self.processes = Processes.current(config.device)
        self._check_parts_of_work(config, env)
        self.config = config
        self.env = env
        if config.lora is not None:
            with torch.random.fork_rng(devices=[]), weights_kept(model):
                torch.manual_seed(config.seed)
                add_lora(model, config.lora)
            if is_quantized(model):
                check_gradient(model)
        self.policy = LanguageModelPolicy(
            model,
            rules,
            temperature=config.temperature,
            autocast_dtype=parse_autocast(config.dtype),
            gradient_checkpointing=config.gradient_checkpointing,
        ).place(config.device)
        self.processes.synchronize(self.policy)  # A model made at random differs between them.
        if config.lora is None:
            self.ref_policy = copy.deepcopy(self.policy).requires_grad_(False)
        else:
            self.ref_policy = AdapterOffPolicy(self.policy).place(config.device)
        if config.shard:
            for one in (self.policy, self.ref_policy):
                shard(one.model, one.value_head, self.processes.size)
                one.is_sharded = True
        self.trained_parameters = {
            n: p for n, p in self.policy.named_parameters() if p.requires_grad
        }
        # No weight decay: it would pull the weights towards zero, while the KL penalty already
        # pulls the policy to where it belongs, the reference policy.
        self.optimizer = torch.optim.AdamW(
            self.trained_parameters.values(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            weight_decay=0.0,
            fused=True,
        )
        names = ("episodes", "tokens", "minibatches", "predict", "critic")
        seeds = np.random.SeedSequence(config.seed).generate_state(len(names))
        self._generators = {
            name: torch.Generator().manual_seed(int(seed))
            for name, seed in zip(names, seeds, strict=True)
        }
        self.log_dir = self.processes.of_main(
            Path(config.log_dir or fresh_log_dir(prefix=self.name.lower()))
        )
        self.num_timesteps = 0
        self.history: list[dict[str, float]] = []
        self._seconds = 0.0
        self._is_new = checkpoint is None
        self._newest_numbered: Path | None = None
        self._last_saved: tuple[int, float] | None = None
        self._snapshot = Snapshot(self.trained_parameters, self.optimizer, self._generators)
        self._is_iterating = False
        self._set_up_parts(own_parts, checkpoint)

    def _check_parts_of_work(self, config: AgentConfig, env: VectorEnv | None) -> None:
        """Make sure that processes, rows, groups and minibatches divide the episodes evenly."""
        number, size = config.episodes_per_iteration, self.processes.size
        if env is not None:
            check_num_episodes("episodes_per_iteration", number, env.num_envs, size)
        group_size = getattr(config, "group_size", 1)
        if number % (group_size * size):
            remedy = f"must be a multiple of group_size={group_size} times {size} processes."
            raise InvalidArgumentError("episodes_per_iteration", number, remedy)
        if (config.minibatch_size or size) % size:
            remedy = f"must be a multiple of the number of processes, {size}."
            raise InvalidArgumentError("minibatch_size", config.minibatch_size, remedy)

    def _set_up_parts(self, own_parts: dict[str, Any], checkpoint: dict[str, Any] | None) -> None:
        """Make the parts that are the user's own objects, or chosen by name; restore them."""
        config = self.config
        own_controller = own_part("kl_controller", config.kl_controller, own_parts)
        self.kl_controller: KLController
        if config.kl_controller == CUSTOM:
            needs = ("coef", "update", "state_dict", "load_state_dict")
            check_part("kl_controller", own_controller, needs, "textgym.agents.KLController")
            self.kl_controller = own_controller
        else:
            self.kl_controller = make_kl_controller(
                config.kl_controller, config.kl_coef, config.kl_target, config.kl_horizon
            )
        if checkpoint is not None and not self._steers_otherwise(checkpoint["hyperparameters"]):
            self.kl_controller.load_state_dict(checkpoint["kl_controller"])
        own_sampler = own_part("sampler", config.sampler, own_parts)
        self.sampler: Sampler | None = (
            None if config.sampler == "policy" else as_sampler(own_sampler)
        )
        if self.sampler is None:
            self._check_reading()

    def _check_reading(self) -> None:
        """Refuse a policy that cannot be read token by token, before the first rollout does."""
        try:
            with self.policy.reading():
                pass
        except InvalidArgumentError as error:
            raise InvalidArgumentError("policy", error.value, error.remedy) from None

    def _steers_otherwise(self, saved: dict[str, Any]) -> bool:
        """Whether the KL penalty begins anew, because it is not the one that was saved."""
        now = dataclasses.asdict(self.config)
        before = now | saved  # An old checkpoint may lack what is new.
        is_steered, was_steered = (one["kl_target"] is not None for one in (now, before))
        names = "kl_coef", "kl_controller"
        return is_steered != was_steered or any(now[name] != before[name] for name in names)

    # --- Training

    @property
    def can_be_saved(self) -> bool:
        """Whether the state after the last finished iteration is there.

        Always, unless ``undo`` is False and an iteration was interrupted.
        """
        return self.config.undo or not self._is_iterating

    @abstractmethod
    def _iterate(self, env: VectorEnv) -> dict[str, float]:
        """Run one iteration: roll out, update the policy, adapt the KL penalty.

        Adds the tokens of the rollout to ``num_timesteps``.

        Returns:
            The agent's scalars, ``rollout/kl`` among them.
        """

    def learn(
        self,
        total_timesteps: int,
        progress_bar: bool = False,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
    ) -> Self:
        """Train for at least this many more tokens, in whole iterations.

        A second call continues where the first one stopped.

        Args:
            total_timesteps: Number of tokens to generate.
            progress_bar: Show a progress bar with the score and the KL.
            callback: Called after each iteration with its row of scalars, in every process; False
                stops.

        Returns:
            The agent.

        Raises:
            InvalidArgumentError: If the agent has no environment, an argument cannot be used, or
                ``log_dir`` has the checkpoints of another run; if ``undo`` is False, and an
                iteration was interrupted; or if there are to be checkpoints, but they cannot hold
                the policy.
            NumericalError: If a score, a reward, a probability or a gradient is NaN or infinite.
                The iteration is undone.
        """
        check_learn(total_timesteps, progress_bar, callback)
        if self.env is None:
            raise InvalidArgumentError(
                "env", None, f"training needs an environment: {self.name}.load(path, env=...)."
            )
        self._undo_unfinished_iteration()
        start = self.num_timesteps
        is_main = self.processes.is_main
        if self.config.save_every is not None or self.config.save_minutes is not None:
            self._check_rebuilding()
            self._check_log_dir()
        settings = dataclasses.asdict(self.config)
        if self._last_saved is None:
            self._last_saved = len(self.history), time.monotonic()
        with (
            MetricsLog(self.log_dir, settings, self.history) if is_main else nullcontext() as log,
            TrainingProgress(total_timesteps, progress_bar and is_main, self.name) as progress,
        ):
            while self.num_timesteps - start < total_timesteps:
                row = self._iterate_or_undo(self.env)
                if log is not None:
                    log.write(row)
                progress.update(self.num_timesteps - start, row)
                self._save_if_due()
                keep_going = callback(row) if callback is not None else None
                if self.processes.any(keep_going is not None and not keep_going):
                    break
        return self

    def _iterate_or_undo(self, env: VectorEnv) -> dict[str, float]:
        """Run one iteration and add its row to the history, or change nothing if it fails."""
        if self.config.undo:
            self._snapshot.take(
                num_iterations=len(self.history),
                num_timesteps=self.num_timesteps,
                seconds=self._seconds,
                parts=self._state_of_parts(),
            )
        self._is_iterating = True
        try:
            started = time.perf_counter()
            self._set_learning_rates()
            scalars = self._iterate(env)
            self._seconds += time.perf_counter() - started
            row = {
                "time/iteration": len(self.history) + 1,
                "time/total_timesteps": self.num_timesteps,
                "time/seconds": self._seconds,
                **scalars,
            }
            num_actions = self.policy.rules.num_actions
            rows = [*self.history, row]
            row["train/alarm"] = float(sound_alarm(rows, num_actions, warn=self.processes.is_main))
            self.history.append(row)
            self._is_iterating = False
        except BaseException:
            if self.config.undo:
                self._undo_unfinished_iteration()
            raise
        return row

    def _importance_weighted(
        self, advantages: Tensor, rollout: Rollout, logprobs: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Correct advantages for what a sampler does differently, and measure it.

        Args:
            advantages: Of tokens, (num_episodes, num_steps), or of completions, (num_episodes,).
            rollout: The episodes.
            logprobs: Log-probabilities of their tokens under the policy before its update,
                (num_episodes, num_steps).

        Returns:
            The advantages, weighted if there is a sampler, and scalars about it for the log.
        """
        if self.sampler is None:
            return advantages, {}
        compared = logprobs, rollout.logprobs, rollout.completion_mask
        scalars = mismatch(*compared)
        is_main = self.processes.is_main
        scalars["rollout/sampler_alarm"] = float(sound_mismatch(scalars, self.history, is_main))
        if self.config.importance_cap is not None:
            advantages, of_weights = weighted_advantages(
                advantages, *compared, self.config.importance_cap
            )
            scalars |= of_weights
        return advantages, scalars

    def _train_too(self, name: str, network: nn.Module, learning_rate: float | None) -> None:
        """Let the optimizer train another network; None stands for the policy's learning rate."""
        parameters = {f"{name}.{n}": p for n, p in network.named_parameters()}
        self.trained_parameters.update(parameters)  # The snapshot sees them, too.
        full_lr = self.config.learning_rate if learning_rate is None else learning_rate
        self.optimizer.add_param_group({"params": [*parameters.values()], "full_lr": full_lr})

    @property
    def _own_minibatch_size(self) -> int | None:
        """Episodes of this process in each minibatch."""
        size = self.config.minibatch_size
        return size and self.processes.split(size)

    def _set_learning_rates(self) -> None:
        factor = self.config.learning_rate_factor(len(self.history) + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("full_lr", self.config.learning_rate) * factor

    def _undo_unfinished_iteration(self) -> None:
        # Training and saving call this once more: a second Ctrl-C may have stopped the first call.
        if not self._is_iterating:
            return
        if not self.config.undo:
            remedy = (
                "an iteration was interrupted, and may have changed part of the weights: go on "
                f"from a checkpoint, with {self.name}.load."
            )
            raise InvalidArgumentError("undo", False, remedy)
        before = self._snapshot.restore()
        del self.history[before["num_iterations"] :]
        self.num_timesteps = before["num_timesteps"]
        self._seconds = before["seconds"]
        self._restore_parts(before["parts"])
        self._is_iterating = False

    def _state_of_parts(self) -> dict[str, Any]:
        """What an iteration changes in the agent's parts, beside weights."""
        return {"kl_controller": copy.deepcopy(self.kl_controller.state_dict())}

    def _restore_parts(self, state: dict[str, Any]) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])

    # --- Prediction

    @torch.no_grad()
    def predict(
        self,
        observation: dict[str, NDArray[Any]],
        state: None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.int64], None]:
        """Choose the next token, with the interface of Stable-Baselines3.

        An observation does not say where its prompt ends, so EOS counts as legal. To have it
        masked, make the environment with ``action_mask_in_info=True`` and pass
        ``info["action_mask"]`` as ``action_masks``.

        Args:
            observation: ``input_ids`` and ``attention_mask``, both (max_length,) or
                (num_envs, max_length).
            state: Ignored; the policy has no state.
            episode_start: Ignored.
            deterministic: Take the most probable token instead of sampling.
            action_masks: True or 1 at legal tokens, (vocab,) or (num_envs, vocab).

        Returns:
            The tokens, int64 of shape () or (num_envs,), and None.

        Raises:
            InvalidArgumentError: If the observation is malformed or longer than the policy's
                context, or the masks leave no token.
        """
        from textgym.models.signature import longest_text  # Imported here: slow.

        rules, device = self.policy.rules, self.config.device
        check_observation(observation, rules.num_actions, longest_text(self.policy.model))
        is_single = np.ndim(observation["input_ids"]) == 1
        batched = {name: np.atleast_2d(observation[name]) for name in observation}
        ids, mask = (
            torch.from_numpy(x).to(device) for x in left_padded(batched, rules.pad_token_id)
        )
        logits = self.policy.next_token_logits(ids, mask).cpu()
        logprobs = self.policy.next_token_logprobs(logits, torch.tensor(rules.min_new_tokens))
        if action_masks is not None:
            legal = check_action_masks(action_masks, len(logprobs), rules.num_actions)
            logprobs[:, : rules.num_actions].masked_fill_(torch.from_numpy(~legal), -torch.inf)
        if deterministic:
            actions = logprobs.argmax(dim=-1)
        else:
            actions = sample(logprobs.log_softmax(dim=-1), self._generators["predict"])
        return (actions[0] if is_single else actions).numpy(), None


def _lasting_name(policy: str | Path) -> str:
    """A model's name, or the whole path of its folder or file: the working folder may change."""
    from textgym.models.loading import place_of_model  # Imported here: slow.

    is_path = Path(policy).expanduser().exists()
    return place_of_model("policy", policy) if is_path else str(policy)
