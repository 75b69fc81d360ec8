"""What all agents have in common: set-up, the training loop, prediction, checkpoints.

Each agent's own file has its hyperparameters, its mathematics, and one method that runs an
iteration, from the rollout to the last optimizer step.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
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
from .checkpoint import (
    CheckpointFolder,
    describe_model,
    model_from_description,
    read_checkpoint,
    write_checkpoint,
)
from .config import AgentConfig
from .distribution import ActionRules, sample
from .environment import (
    action_rules,
    as_vector_env,
    base_attribute,
    check_num_episodes,
    check_vocabulary,
    left_padded,
)
from .importance import weighted_advantages
from .inputs import (
    check_action_masks,
    check_folder,
    check_learn,
    check_observation,
    check_restored,
    explain_damage,
)
from .kl_control import KLController, make_kl_controller
from .lora import AdapterOffPolicy, add_lora, check_gradient, fingerprint, merged
from .metrics import MetricsLog, TrainingProgress, fresh_log_dir
from .mismatch import mismatch, sound_mismatch
from .parts import own_part, split_own_parts
from .policy import LanguageModelPolicy, in_float32
from .processes import Processes
from .sampling import Sampler, as_sampler
from .sharding import full, full_state, load_full_state, shard, shard_optimizer_state
from .snapshot import Snapshot

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv
    from torch import Tensor
    from transformers import PreTrainedModel

    from .rollout import Rollout

__all__ = ["Agent"]


class Agent(ABC):
    """Trains a causal language model on whole episodes, one token per step.

    Each iteration samples episodes, updates the policy, and adapts the weight of the KL penalty; a
    subclass writes it in :meth:`_iterate`. The reference policy is a frozen copy of the policy at
    the start.

    All randomness comes from ``seed``, with separate generators for prompts, tokens and
    minibatches. So agents with equal seeds see equal prompts in every iteration, even if they
    sample different tokens.

    An iteration that is interrupted, by Ctrl-C or by any error, is undone: the agent is back in the
    state after the last finished iteration, and can be saved or trained on from there.

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

        plain, own_parts = split_own_parts(hyperparameters, self.parts)
        config = self.config_class.from_keywords(**plain)
        vector_env = as_vector_env(env)
        try:
            model = load_language_model(policy)
        except InvalidArgumentError as error:
            is_name = isinstance(policy, str | Path)
            value = policy if is_name else type(policy).__name__
            raise InvalidArgumentError("policy", value, error.remedy) from None
        check_vocabulary(policy, model, vector_env)
        model = copy.deepcopy(model)
        if config.lora is None:  # Frozen weights may stay in a smaller dtype.
            model = in_float32(model, "policy", "pass lora=True to train adapters on it")
        self.base_model = str(policy) if isinstance(policy, str | Path) else None
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
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                add_lora(model, config.lora)
            if is_quantized(model):
                check_gradient(model)
        self.policy = LanguageModelPolicy(
            model,
            rules,
            temperature=config.temperature,
            autocast_dtype=torch.bfloat16 if config.dtype else None,
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
        self._newest_numbered: Path | None = None
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
        self.kl_controller: KLController = own_controller or make_kl_controller(
            config.kl_controller, config.kl_coef, config.kl_target, config.kl_horizon
        )
        if checkpoint is not None:
            self.kl_controller.load_state_dict(checkpoint["kl_controller"])
        own_sampler = own_part("sampler", config.sampler, own_parts)
        self.sampler: Sampler | None = (
            None if config.sampler == "policy" else as_sampler(own_sampler)
        )

    # --- Training

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
                ``log_dir`` has the checkpoints of another run.
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
        self._check_log_dir()
        settings = dataclasses.asdict(self.config)
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
        self._snapshot.take(
            num_iterations=len(self.history),
            num_timesteps=self.num_timesteps,
            seconds=self._seconds,
            kl_controller=self.kl_controller.state_dict(),
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
        if self._is_iterating:
            before = self._snapshot.restore()
            del self.history[before["num_iterations"] :]
            self.num_timesteps = before["num_timesteps"]
            self._seconds = before["seconds"]
            self.kl_controller.load_state_dict(before["kl_controller"])
            self._is_iterating = False

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
            InvalidArgumentError: If the observation is malformed, or the masks leave no token.
        """
        rules, device = self.policy.rules, self.config.device
        check_observation(observation, rules.num_actions)
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

    # --- Checkpoints

    def save(self, path: str | Path) -> None:
        """Write everything that an exact continuation needs into a folder.

        ``transformers`` can load the policy from it. If an iteration was interrupted, the folder
        holds the state after the last finished one. Of several processes the main one writes;
        training goes on with as many as load it. All of them must call this.

        Args:
            path: The folder; an earlier checkpoint there is replaced.

        Raises:
            InvalidArgumentError: If there is something else.
            OSError: If it cannot be written, as when the disk is full. An earlier checkpoint stays.
        """
        check_folder("path", path)
        self._undo_unfinished_iteration()
        checkpoint = self._checkpoint()  # All processes have their part of sharded weights.
        whole = full_state(self.policy.model) if self.config.shard else None
        if self.processes.is_main:
            write_checkpoint(
                path,
                self.name,
                checkpoint,
                export=lambda folder: self._export(self.policy.model, folder, whole),
            )

    def _check_log_dir(self) -> None:
        """Make sure that numbered checkpoints of two runs do not mix."""
        saves = self.config.save_every is not None or self.config.save_minutes is not None
        if saves and not self.history and CheckpointFolder(self.log_dir).all():
            raise InvalidArgumentError(
                "log_dir",
                str(self.log_dir),
                f"it has the checkpoints of an earlier run: go on with {self.name}.load(log_dir, "
                "env), or name another folder",
            )

    def _save_if_due(self) -> None:
        """Write a numbered checkpoint of the run, and delete old ones, as the settings say."""
        config, (iteration, moment) = self.config, self._last_saved
        due = config.save_every is not None and len(self.history) - iteration >= config.save_every
        if config.save_minutes is not None:
            minutes = (time.monotonic() - moment) / 60
            due = due or self.processes.of_main(minutes >= config.save_minutes)
        if due:
            self.save_numbered()

    def save_numbered(self) -> Path:
        """Write the next checkpoint of the run, ``log_dir/checkpoints/ITERATION``.

        Of the earlier ones, those beyond ``save_total_limit`` are deleted.

        Returns:
            The checkpoint's folder.
        """
        checkpoints = CheckpointFolder(self.log_dir, self.config.save_total_limit)
        self._undo_unfinished_iteration()
        path = checkpoints.path(len(self.history))
        if path != self._newest_numbered:
            self.save(path)
            self._newest_numbered = path
        if self.processes.is_main:
            checkpoints.forget_old()
        self._last_saved = len(self.history), time.monotonic()
        return path

    def save_pretrained(self, folder: str | Path, *, merge: bool = True) -> None:
        """Write the policy as a Hugging Face folder, with the tokenizer of the environment.

        Args:
            folder: What ``AutoModelForCausalLM.from_pretrained`` will take.
            merge: Add adapters to the weights. False writes the adapters alone, for ``peft``.

        Raises:
            InvalidArgumentError: If the path cannot be that of a folder, or if adapters are to be
                added to quantised weights.
        """
        from textgym.models.placement import is_quantized  # Imported here: slow.

        check_folder("folder", folder)
        if merge and is_quantized(self.policy.model):
            raise InvalidArgumentError(
                "merge",
                True,
                "the weights are quantised, and adding the adapters would round them away: pass "
                "merge=False, and load the adapters with peft on the model as it was before",
            )
        self._undo_unfinished_iteration()
        model = merged(self.policy.model) if merge else self.policy.model
        whole = full_state(model) if self.config.shard else None
        if self.processes.is_main:
            self._export(model, Path(folder), whole)

    def _export(
        self, model: PreTrainedModel, folder: Path, state_dict: dict[str, Tensor] | None
    ) -> None:
        from textgym.models.loading import quiet_if  # Imported here: slow.

        with quiet_if(True):
            model.save_pretrained(folder, state_dict=state_dict)
        tokenizer: Any = base_attribute(self.env, "tokenizer") if self.env is not None else None
        if hasattr(tokenizer, "save_pretrained"):  # Other environments have token ids alone.
            tokenizer.save_pretrained(folder)

    def _weights(self) -> dict[str, Any]:
        """The part of a checkpoint that holds weights.

        Adapters alone if the model below them can be loaded again by its name, or is quantised.
        """
        from textgym.models.placement import is_quantized  # Imported here: slow.

        if self.config.lora is None:
            return {
                "policy": full_state(self.policy),
                "ref_policy": full_state(self.ref_policy),
            }
        state = self.policy.state_dict()
        needs_policy = self.base_model is None and is_quantized(self.policy.model)
        if self.base_model is not None or needs_policy:
            names = {n for n, p in self.policy.named_parameters() if p.requires_grad}
            state = {name: tensor for name, tensor in state.items() if name in names}
        return {
            "policy": state,
            "fingerprint": fingerprint(self.policy.model),
            "needs_policy": needs_policy,
        }

    def _checkpoint(self) -> dict[str, Any]:
        return {
            **self._weights(),
            "base_model": self.base_model,
            "hyperparameters": dataclasses.asdict(self.config),
            "rules": dataclasses.asdict(self.policy.rules),
            "model": describe_model(self.policy.model),
            "trained": list(self.trained_parameters),
            "optimizer": full(self.optimizer.state_dict()),
            "kl_controller": self.kl_controller.state_dict(),
            "generators": {
                name: generator.get_state() for name, generator in self._generators.items()
            },
            "num_timesteps": self.num_timesteps,
            "seconds": self._seconds,
            "history": self.history,
        }

    @classmethod
    @explain_damage
    def load(
        cls,
        path: str | Path,
        env: gym.Env | VectorEnv | None = None,
        device: str | None = None,
        log_dir: str | Path | None = None,
        policy: PreTrainedModel | None = None,
        **changes: Any,
    ) -> Self:
        """Restore an agent from a folder that :meth:`save` wrote.

        The model's folder or hub id is not needed, except below adapters. With the same kind of
        environment, training continues exactly as if it had not stopped, provided that the
        environment's episodes depend on nothing but the seed of their reset.

        Args:
            path: The folder; or that of a run, for its latest checkpoint that is whole.
            env: The environment to train in; without one the agent can only predict.
            device: Replaces the device that the agent was trained on.
            log_dir: Replaces the folder that the agent logged to.
            policy: The quantised model below the adapters, if the agent was made with a loaded one.
                All other models are loaded by their name, or are in the folder.
            **changes: Hyperparameters that are to be other ones, such as ``shard=False``, and the
                objects that the agent was made with, which get their state back.

        Raises:
            InvalidArgumentError: If the folder or the environment cannot be used.
        """
        contents = read_checkpoint(path, cls.name)
        vector_env = None if env is None else as_vector_env(env)
        given = {"device": device, "log_dir": log_dir}
        changes |= {name: value for name, value in given.items() if value is not None}
        plain, own_parts = split_own_parts(contents["hyperparameters"] | changes, cls.parts)
        config = cls.config_class.from_keywords(**plain)
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
        lora, base_model = config.lora is not None, contents.get("base_model")
        needs_policy = contents.get("needs_policy", False)
        if needs_policy != (policy is not None):
            remedy = "the file holds the model, or its name: leave the argument out."
            if needs_policy:
                remedy = "the file holds adapters alone: pass the quantised model below them."
            raise InvalidArgumentError("policy", policy and type(policy).__name__, remedy)
        if policy is not None:
            model = copy.deepcopy(policy)
        elif lora and base_model is not None:
            model = copy.deepcopy(_load_base(base_model))
        else:
            model = model_from_description(contents["model"])
        if not lora:
            for name, parameter in model.named_parameters(prefix="model"):
                parameter.requires_grad_(name in contents["trained"])
        agent.base_model = base_model
        agent._set_up(model, rules, vector_env, config, own_parts, contents)
        load_full_state(agent.policy, contents["policy"], strict=not lora)
        if not lora:
            load_full_state(agent.ref_policy, contents["ref_policy"])
        elif fingerprint(agent.policy.model) != contents["fingerprint"]:
            raise InvalidArgumentError(
                "path",
                str(path),
                f"its adapters belong to other weights than those of "
                f"{base_model or type(policy).__name__!r} now.",
            )
        parameters = [p for group in agent.optimizer.param_groups for p in group["params"]]
        agent.optimizer.load_state_dict(shard_optimizer_state(contents["optimizer"], parameters))
        check_restored(path, agent.policy, agent.optimizer, contents)
        for name, state in contents["generators"].items():
            agent._generators[name].set_state(state)
        agent.num_timesteps = contents["num_timesteps"]
        agent.history = contents["history"]
        agent._seconds = contents["seconds"]
        return agent


def _load_base(name: str) -> PreTrainedModel:
    from textgym.models.loading import load_language_model  # Imported here: slow.

    try:
        return load_language_model(name)
    except InvalidArgumentError as error:
        remedy = f"its adapters need the model {name!r}: {error.remedy}"
        raise InvalidArgumentError("path", name, remedy) from None
