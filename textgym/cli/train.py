"""``textgym train``."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from textgym.cli.console import make_console
from textgym.cli.flags import EnvironmentFlags, check_output, check_policy, make_credit
from textgym.cli.run_folder import CHECKPOINT, RunSettings
from textgym.errors import InvalidArgumentError
from textgym.memory import keep_freed_memory

if TYPE_CHECKING:
    from textgym.agents import PPO

__all__ = ["TrainCommand"]


@functools.cache
def _ppo_flags() -> type:
    """The hyperparameters of PPO as flags; ``log_dir`` is called ``--output``."""
    from textgym.agents import PPOConfig

    @dataclass(frozen=True, kw_only=True)
    class PPOFlags(PPOConfig):
        """Hyperparameters of PPO."""

        log_dir: Annotated[str | None, tyro.conf.arg(name="output")] = None
        """Folder of metrics, settings and checkpoint. None: a fresh folder below runs/."""

        def __post_init__(self) -> None:
            """Leave the checks to :meth:`TrainCommand.run`: here the parser would report them."""

    return PPOFlags


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a language model with token-level PPO, and save a checkpoint."""

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
    """Episodes played at the same time."""
    environment: tyro.conf.OmitArgPrefixes[EnvironmentFlags] = dataclasses.field(
        default_factory=EnvironmentFlags
    )
    """What the environment is made of."""
    ppo: Annotated[tyro.conf.OmitArgPrefixes[Any], tyro.conf.arg(constructor_factory=_ppo_flags)]
    """Hyperparameters of PPO."""

    def run(self) -> None:
        """Run the command."""
        if self.total_timesteps < 1:
            raise InvalidArgumentError(
                "total_timesteps", self.total_timesteps, "must be at least 1"
            )
        agent = self._make_agent()
        console = make_console()
        console.print(f"output  {agent.log_dir}", soft_wrap=True)
        try:
            agent.learn(self.total_timesteps, progress_bar=True)
        except KeyboardInterrupt:
            console.print("interrupted")
            raise
        finally:  # whatever stopped the training, keep what was learned
            checkpoint = agent.log_dir / CHECKPOINT
            agent.save(checkpoint)
            console.print(_training_summary(agent))
            console.print(f"checkpoint  {checkpoint}", soft_wrap=True)
            command = shlex.join(["textgym", "evaluate", "--checkpoint", str(agent.log_dir)])
            console.print(f"evaluate it  {command}", soft_wrap=True)

    def _make_agent(self) -> PPO:
        """Make the agent, and its folder with the settings of the run."""
        from textgym.agents import PPO, PPOConfig

        hyperparameters = {
            field.name: getattr(self.ppo, field.name) for field in dataclasses.fields(PPOConfig)
        }
        check_output(self.ppo.log_dir)
        config = PPOConfig(**hyperparameters)
        if config.device == "cpu":
            keep_freed_memory()
        check_policy(self.policy)
        credit = make_credit(self.credit, self.beta, self.policy, config.gamma, self.start)
        envs = self.environment.make(
            self.policy, self.num_envs, credit, config.device, config.dtype
        )
        agent = PPO(self.policy, envs, **hyperparameters)
        if (agent.log_dir / CHECKPOINT).exists():
            raise InvalidArgumentError(
                "output", str(agent.log_dir), f"it has a {CHECKPOINT} already; name another folder"
            )
        agent.log_dir.mkdir(parents=True, exist_ok=True)
        settings = RunSettings(
            environment=dataclasses.replace(
                self.environment, tokenizer=self.environment.tokenizer_of(self.policy)
            ),
            policy=self.policy,
            credit=self.credit,
            beta=self.beta,
            start=self.start,
        )
        settings.write(agent.log_dir)
        return agent


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
