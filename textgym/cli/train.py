"""``textgym train``."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from textgym.checks import check_whole_number
from textgym.cli.console import make_console
from textgym.cli.flags import EnvironmentFlags, check_output, check_policy, make_credit
from textgym.cli.run_folder import RunSettings, locked, newest_run
from textgym.cli.samples_file import SampleKeeper
from textgym.cli.signals import signals_raised
from textgym.cli.tracking import WandbLog, check_project
from textgym.errors import InvalidArgumentError
from textgym.memory import keep_freed_memory

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from textgym.agents import PPO, Processes

__all__ = ["TrainCommand"]

_MAY_CHANGE = (
    "log_dir", "device", "shard", "undo", "save_every", "save_minutes", "save_total_limit"
)  # fmt: skip
"""Hyperparameters that a run may go on with other values of: they do not change what it learns."""


@functools.cache
def _ppo_flags() -> type:
    """The hyperparameters of PPO as flags; ``log_dir`` is called ``--output``."""
    from textgym.agents import PPOConfig

    @dataclass(frozen=True, kw_only=True)
    class PPOFlags(PPOConfig):
        """Hyperparameters of PPO."""

        log_dir: Annotated[str | None, tyro.conf.arg(name="output")] = None
        """Folder of metrics, settings and checkpoints. None: a fresh folder below runs/."""
        save_every: int | None = 10
        """Iterations between checkpoints; None writes one at the end only."""

        def __post_init__(self) -> None:
            """Leave the checks to :meth:`TrainCommand.run`: here the parser would report them."""

    return PPOFlags


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a language model with token-level PPO, and save checkpoints.

    Under `torchrun` or `accelerate launch` several processes train together, each with its part of
    the episodes.
    """

    credit: str = "abc"
    """How credit is assigned: a name from `textgym credit --list`, or your own as module:name."""
    beta: float | None = None
    """Share of the score that is redistributed, or factor on the potential. None: the default."""
    start: Literal["zero", "prompt"] | None = None
    """What credit is measured from: 0, or what the prompt alone is worth. None: the default."""
    policy: str = "embedded"
    """Language model to train: "embedded", a folder or a hub id."""
    total_timesteps: int = 20_000
    """Tokens to train on; the last iteration is finished."""
    num_envs: int = 16
    """Episodes played at the same time, by all processes together."""
    resume: str | None = None
    """Folder of a run to continue, with its settings. "auto": the folder of --output if it has a
    checkpoint; the newest run below runs/ if --output is not given; otherwise a new run."""
    samples: int = 4
    """Completions to keep with each checkpoint, with score and credit, in samples.jsonl; 0
    for none."""
    wandb: str | None = None
    """Weights & Biases project to log to as well. Needs textgym[wandb]."""
    environment: tyro.conf.OmitArgPrefixes[EnvironmentFlags] = dataclasses.field(
        default_factory=EnvironmentFlags
    )
    """What the environment is made of."""
    ppo: Annotated[tyro.conf.OmitArgPrefixes[Any], tyro.conf.arg(constructor_factory=_ppo_flags)]
    """Hyperparameters of PPO."""
    given: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """The flags that were written, such as "learning_rate". So a run that goes on can tell a flag
    that asks for the default from one that was left out."""

    def run(self) -> None:
        """Run the command."""
        from textgym.agents import Processes

        check_whole_number("total_timesteps", self.total_timesteps, 1)
        check_output(self.ppo.log_dir)
        check_whole_number("samples", self.samples, 0)
        if self.wandb is not None:
            check_project(self.wandb)
        processes = Processes.current(self._config().device)
        folder = processes.of_main(self._folder_to_resume())
        if folder is None:
            agent, settings = self._new_agent(processes), self._settings()
        else:
            agent, settings = self._resumed_agent(folder)
        with (
            locked(agent.log_dir) if processes.is_main else nullcontext(),
            signals_raised(),
        ):
            self._train(agent, settings)

    def going_on(self, folder: Path) -> str:
        """The command that goes on with the run of this one, with the flags that no run keeps."""
        words = ["textgym", "train", "--resume", str(folder)]
        if "device" in self.given:
            words += ["--device", str(self.ppo.device)]
        words += ["--shard"] if self.ppo.shard else []
        words += [] if self.wandb is None else ["--wandb", self.wandb]
        words += ["--samples", str(self.samples)] if "samples" in self.given else []
        return shlex.join(words)

    def _train(self, agent: PPO, settings: RunSettings) -> None:
        """Train to the end, or to an interruption; save, and say what to do next."""
        console = make_console(quiet=not agent.processes.is_main)
        console.print(f"output  {agent.log_dir}", soft_wrap=True)
        console.print(f"device  {agent.config.device}")
        go_on = self.going_on(agent.log_dir)
        remaining = settings.total_timesteps - agent.num_timesteps
        if remaining <= 0:
            console.print("the run has all of its tokens; --total-timesteps asks for more")
            return
        if agent.processes.is_main:
            settings.write(agent.log_dir)
        keeper = SampleKeeper(agent, self.samples)
        with self._tracked(agent, settings) as track:
            self._learn(agent, remaining, keeper, track, go_on)

    def _learn(
        self,
        agent: PPO,
        timesteps: int,
        keeper: SampleKeeper,
        track: Callable[[dict[str, float]], None],
        go_on: str,
    ) -> None:
        console = make_console(quiet=not agent.processes.is_main)

        def after_iteration(row: dict[str, float]) -> None:
            keeper.keep_if_due()
            track(row)

        try:
            keeper.keep()
            agent.learn(timesteps, progress_bar=True, callback=after_iteration)
            keeper.keep()
        except OSError:  # The disk is full, perhaps, and another checkpoint would not fit, either.
            console.print(f"go on when it can be written again  {go_on}", soft_wrap=True)
            raise
        except KeyboardInterrupt as interruption:
            console.print(str(interruption) or "interrupted")
            # Saving sharded weights needs all processes, and some may be gone.
            if agent.config.shard or not agent.can_be_saved:
                console.print(f"go on from the last checkpoint  {go_on}", soft_wrap=True)
                raise
            self._save(agent)
            console.print(f"go on  {go_on}", soft_wrap=True)
            raise
        except BaseException:  # Whatever it was, keep what was learned.
            if agent.can_be_saved:
                self._save(agent)
            raise
        self._save(agent)

    @contextmanager
    def _tracked(
        self, agent: PPO, settings: RunSettings
    ) -> Iterator[Callable[[dict[str, float]], None]]:
        """Give what logs a row to Weights & Biases, if it is asked for."""
        if self.wandb is None or not agent.processes.is_main:
            yield lambda row: None
            return
        config = dataclasses.asdict(settings) | vars(agent.config)
        log = WandbLog(self.wandb, agent.log_dir, config)
        try:
            yield log.write
        finally:
            log.close()

    def _save(self, agent: PPO) -> None:
        console = make_console(quiet=not agent.processes.is_main)
        checkpoint = agent.save_numbered()
        console.print(_training_summary(agent))
        console.print(f"checkpoint  {checkpoint}", soft_wrap=True)
        command = shlex.join(["textgym", "evaluate", "--checkpoint", str(agent.log_dir)])
        console.print(f"evaluate it  {command}", soft_wrap=True)

    # --- A new run

    def _new_agent(self, processes: Processes) -> PPO:
        from textgym.agents import PPO

        config = self._config()
        if config.device == "cpu":
            keep_freed_memory()
        check_policy(self.policy)
        settings = dataclasses.replace(self._settings(), environment=self.environment)
        envs = self._make_envs(settings, config, processes)
        agent = PPO(self.policy, envs, **vars(config))
        if processes.of_main((agent.log_dir / "checkpoints").exists()):
            remedy = "it has checkpoints already: go on with --resume, or name another folder"
            raise InvalidArgumentError("output", str(agent.log_dir), remedy)
        return agent

    def _config(self) -> Any:
        from textgym.agents import PPOConfig

        names = [field.name for field in dataclasses.fields(PPOConfig)]
        return PPOConfig(**{name: getattr(self.ppo, name) for name in names})

    def _settings(self) -> RunSettings:
        return RunSettings(
            environment=dataclasses.replace(
                self.environment, tokenizer=self.environment.tokenizer_of(self.policy)
            ),
            **{name: getattr(self, name) for name in self._names_of_settings()},
        )

    @staticmethod
    def _names_of_settings() -> list[str]:
        return [f.name for f in dataclasses.fields(RunSettings) if f.name != "environment"]

    @staticmethod
    def _make_envs(settings: RunSettings, config: Any, processes: Processes) -> VectorEnv:
        if settings.num_envs % processes.size:
            remedy = f"must be a multiple of the number of processes, {processes.size}"
            raise InvalidArgumentError("num_envs", settings.num_envs, remedy)
        credit = make_credit(
            settings.credit, settings.beta, settings.policy, config.gamma, settings.start
        )
        num_envs = processes.split(settings.num_envs)
        return settings.environment.make(
            settings.policy, num_envs, credit, config.device, config.dtype
        )

    # --- A run that goes on

    def _folder_to_resume(self) -> Path | None:
        """The run to go on with; None for a new one."""
        if self.resume != "auto":
            return None if self.resume is None else Path(self.resume).expanduser()
        if self.ppo.log_dir is None:
            return newest_run()
        folder = Path(self.ppo.log_dir).expanduser()
        return folder if (folder / "checkpoints").exists() else None

    def _resumed_agent(self, folder: Path) -> tuple[PPO, RunSettings]:
        """The agent as it was, and the settings of its run, with the total that is asked for."""
        from textgym.agents import PPO, PPOConfig, Processes
        from textgym.agents.checkpoint import find_checkpoint, hyperparameters_of

        if self.ppo.log_dir is not None and Path(self.ppo.log_dir).expanduser() != folder:
            remedy = f"leave it out: the run goes on in its own folder, {folder}"
            raise InvalidArgumentError("output", self.ppo.log_dir, remedy)
        settings = RunSettings.read(folder, "resume")
        try:
            checkpoint = find_checkpoint(folder)
            trained = PPOConfig(**hyperparameters_of(checkpoint, "PPO"))
        except InvalidArgumentError as error:
            remedy = f"{error.remedy.rstrip('.')}; start it anew, without --resume"
            raise InvalidArgumentError("resume", str(folder), remedy) from None
        for name, given, was in self._differences(settings, trained):
            remedy = f"the run was started with {was}: leave the flag out, or start another run"
            raise InvalidArgumentError(name, given, remedy)
        changes = {name: getattr(self.ppo, name) for name in _MAY_CHANGE if name in self.given}
        # Where it runs is a matter of the launch: another machine may go on.
        launch = {"device": self.ppo.device, "shard": self.ppo.shard}
        changes |= launch | {"log_dir": folder}
        config = dataclasses.replace(trained, **changes)
        if config.device == "cpu":
            keep_freed_memory()
        envs = self._make_envs(settings, config, Processes.current(config.device))
        if "total_timesteps" in self.given:
            settings = dataclasses.replace(settings, total_timesteps=self.total_timesteps)
        return PPO.load(checkpoint, envs, **changes), settings

    def _differences(self, settings: RunSettings, trained: Any) -> Iterator[tuple[str, Any, Any]]:
        """Flags that were given, and are not those of the run: name, value, the run's value."""
        fixed = self.given - {*_MAY_CHANGE, "total_timesteps"}
        pairs = [
            (self.ppo, trained, [f.name for f in dataclasses.fields(trained)]),
            (self, settings, self._names_of_settings()),
            (
                self.environment,
                settings.environment,
                [f.name for f in dataclasses.fields(EnvironmentFlags)],
            ),
        ]
        for flags, run, names in pairs:
            for name in names:
                if name in fixed and (value := getattr(flags, name)) != (was := getattr(run, name)):
                    yield name, value, was


def _training_summary(agent: PPO) -> str:
    if not agent.history:
        return "no iteration was finished: the checkpoint holds the untrained policy"
    scores = [row["rollout/score_mean"] for row in agent.history]
    window = min(10, len(scores))
    last = agent.history[-1]
    iterations = "1 iteration" if len(scores) == 1 else f"{len(scores)} iterations"
    return (
        f"{iterations}, {agent.num_timesteps} tokens, {last['time/seconds']:.0f} s\n"
        f"mean score  {sum(scores[:window]) / window:+.3f} over the first {window} iterations, "
        f"{sum(scores[-window:]) / window:+.3f} over the last {window}\n"
        f"KL to the reference  {last['rollout/kl']:.3f} nats per episode in the last iteration"
    )
