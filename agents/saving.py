"""What an agent keeps of itself: checkpoints, exports, and the agent that they restore."""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from textgym.errors import InvalidArgumentError

from .checkpoint import (
    CheckpointFolder,
    describe_model,
    model_from_description,
    read_checkpoint,
    write_checkpoint,
)
from .config import AgentConfig
from .distribution import ActionRules
from .environment import action_rules, as_vector_env, base_attribute, check_context
from .inputs import check_folder, check_restored, explain_damage
from .lora import fingerprint, merged
from .parts import split_own_parts
from .sharding import full, full_state, load_full_state, shard_optimizer_state

if TYPE_CHECKING:
    import gymnasium as gym
    import torch
    from gymnasium.vector import VectorEnv
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from .kl_control import KLController
    from .lora import AdapterOffPolicy
    from .policy import LanguageModelPolicy
    from .processes import Processes

__all__ = ["Saving"]

_OTHER_WEIGHTS = "the checkpoint has no weights for it: leave the argument out."


class Saving(ABC):
    """The part of :class:`textgym.agents.agent.Agent` that saves and loads.

    The agent sets the attributes; the file formats are those of :mod:`textgym.agents.checkpoint`.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]
    parts: ClassVar[tuple[str, ...]]
    config: AgentConfig
    processes: Processes
    policy: LanguageModelPolicy
    ref_policy: LanguageModelPolicy | AdapterOffPolicy
    base_model: str | None
    env: VectorEnv | None
    trained_parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    kl_controller: KLController
    log_dir: Path
    history: list[dict[str, float]]
    num_timesteps: int
    _seconds: float
    _generators: dict[str, torch.Generator]
    _can_be_rebuilt: bool
    _is_new: bool
    _newest_numbered: Path | None
    _last_saved: tuple[int, float] | None

    @abstractmethod
    def _set_up(
        self,
        model: PreTrainedModel,
        rules: ActionRules,
        env: VectorEnv | None,
        config: AgentConfig,
        own_parts: dict[str, Any],
        checkpoint: dict[str, Any] | None = None,
    ) -> None: ...

    @abstractmethod
    def _undo_unfinished_iteration(self) -> None: ...

    def save(self, path: str | Path) -> None:
        """Write everything that an exact continuation needs into a folder.

        ``transformers`` can load the policy from it. If an iteration was interrupted, the folder
        holds the state after the last finished one. Of several processes the main one writes;
        training goes on with as many as load it. All of them must call this.

        Args:
            path: The folder; an earlier checkpoint there is replaced.

        Raises:
            InvalidArgumentError: If there is something else, if a checkpoint cannot hold the
                policy, or if ``undo`` is False and an iteration was interrupted.
            OSError: If it cannot be written, as when the disk is full. An earlier checkpoint stays.
        """
        check_folder("path", path)
        self._check_rebuilding()
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

    def _check_rebuilding(self) -> None:
        """Refuse to write a checkpoint from which the policy could not be built again."""
        if not self._can_be_rebuilt:
            raise InvalidArgumentError(
                "policy",
                type(self.policy.model).__name__,
                "a checkpoint cannot hold it, because Transformers builds another model from its "
                "config: pass the plain model, with lora=... to train adapters, or after "
                "merge_and_unload() if it has some; save_pretrained exports what it has learned",
            )

    def _check_log_dir(self) -> None:
        """Make sure that numbered checkpoints of two runs do not mix."""
        is_first = self._is_new and self._newest_numbered is None
        if is_first and CheckpointFolder(self.log_dir).all():
            raise InvalidArgumentError(
                "log_dir",
                str(self.log_dir),
                f"it has the checkpoints of an earlier run: go on with {self.name}.load(log_dir, "
                "env), or name another folder",
            )

    def _save_if_due(self) -> None:
        """Write a numbered checkpoint of the run, and delete old ones, as the settings say."""
        assert self._last_saved is not None
        config, (iteration, moment) = self.config, self._last_saved
        due = config.save_every is not None and len(self.history) - iteration >= config.save_every
        if config.save_minutes is not None:
            minutes = (time.monotonic() - moment) / 60
            due = due or self.processes.of_main(minutes >= config.save_minutes)
        if due:
            self.save_numbered()

    @property
    def has_checkpoint(self) -> bool:
        """Whether this agent has written a numbered checkpoint after its last iteration."""
        path = CheckpointFolder(self.log_dir).path(len(self.history))
        return path == self._newest_numbered

    def save_numbered(self) -> Path:
        """Write the next checkpoint of the run, ``log_dir/checkpoints/ITERATION``.

        Of the earlier ones, those beyond ``save_total_limit`` are deleted. Later ones, of a run
        that goes on from an earlier checkpoint, are deleted, too.

        Returns:
            The checkpoint's folder.

        Raises:
            InvalidArgumentError: If ``log_dir`` has the checkpoints of another run, if a checkpoint
                cannot hold the policy, or if ``undo`` is False and an iteration was interrupted.
            OSError: If it cannot be written, as when the disk is full.
        """
        checkpoints = CheckpointFolder(self.log_dir, self.config.save_total_limit)
        if self.processes.is_main:  # The others would see what it has just written.
            self._check_log_dir()
        self._undo_unfinished_iteration()
        path = checkpoints.path(len(self.history))
        if path != self._newest_numbered:
            self.save(path)
            self._newest_numbered = path
        if self.processes.is_main:
            checkpoints.forget_old(path)
        self._last_saved = len(self.history), time.monotonic()
        return path

    def save_pretrained(self, folder: str | Path, *, merge: bool = True) -> None:
        """Write the policy as a Hugging Face folder, with the tokenizer of the environment.

        An agent that was loaded without an environment writes none.

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
            "hyperparameters": dataclasses.asdict(self.config) | {"log_dir": str(self.log_dir)},
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
                objects that the agent was made with, which get their state back. With another
                ``seed`` all random numbers are other ones from here on. With another ``kl_coef`` or
                ``kl_controller`` the weight of the KL penalty starts there.

        Raises:
            InvalidArgumentError: If the folder or the environment cannot be used, or if ``lora`` or
                ``critic`` would need other weights than the folder has.
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
        agent._can_be_rebuilt = True
        lora, base_model = config.lora is not None, contents.get("base_model")
        if lora != (contents["hyperparameters"].get("lora") is not None):
            raise InvalidArgumentError("lora", changes["lora"], _OTHER_WEIGHTS)
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
        if vector_env is not None:
            check_context("env", env, model, vector_env)
        if not lora:
            for name, parameter in model.named_parameters(prefix="model"):
                parameter.requires_grad_(name in contents["trained"])
        agent.base_model = base_model
        agent._set_up(model, rules, vector_env, config, own_parts, contents)
        if changes.get("lora") is not None:
            names = {*contents["trained"], *agent.trained_parameters}
            shapes, own = (
                {name: state[name].shape for name in names if name in state}
                for state in (contents["policy"], agent.policy.state_dict())
            )
            if shapes != own:
                raise InvalidArgumentError("lora", changes["lora"], _OTHER_WEIGHTS)
        place, was = Path(path).expanduser().resolve(), contents["hyperparameters"]["log_dir"]
        agent._is_new = agent.log_dir.resolve() not in (Path(was).resolve(), place, *place.parents)
        if lora:  # The weights below the adapters were not cast when the agent was made.
            for name, tensor in agent.policy.state_dict(keep_vars=True).items():
                if name in contents["policy"]:
                    tensor.data = tensor.data.to(contents["policy"][name].dtype)
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
        groups = agent.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        # What the hyperparameters say; they may be other ones than those that were saved.
        settings = [{k: v for k, v in g.items() if k in ("eps", "full_lr")} for g in groups]
        agent.optimizer.load_state_dict(shard_optimizer_state(contents["optimizer"], parameters))
        for group, own in zip(agent.optimizer.param_groups, settings, strict=True):
            group.update(own)
        check_restored(path, agent.policy, agent.optimizer, contents)
        if config.seed == contents["hyperparameters"]["seed"]:
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
