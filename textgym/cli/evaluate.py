"""``textgym evaluate``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from textgym.checks import check_whole_number
from textgym.cli.console import make_console
from textgym.cli.flags import EnvironmentOverrides, check_policy, make_credit
from textgym.cli.run_folder import SETTINGS, RunSettings
from textgym.errors import InvalidArgumentError
from textgym.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from gymnasium.vector import VectorEnv
    from rich.console import Console

    from textgym.agents import Agent, Rollout
    from textgym.wrappers.vector import CreditAssignment

__all__ = ["EvaluateCommand"]


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Measure a policy: score, KL to the reference policy, length, and some completions.

    With a checkpoint, the environment, the credit, gamma and dtype are those of its training,
    except where a flag says otherwise.
    """

    checkpoint: Path | None = None
    """Checkpoint of a bundled agent, or a run, for its latest one. None: evaluate --policy."""
    policy: str = "embedded"
    """Language model to evaluate without a checkpoint: "embedded", a folder or a hub id."""
    episodes: int = 128
    """Episodes to play."""
    samples: int = 4
    """Completions to show, coloured by their credit."""
    seed: int = 0
    """Seed of prompts and tokens."""
    credit: str | None = None
    """Credit of the shown completions. None: as in training; without a checkpoint, abc."""
    beta: float | None = None
    """See `textgym train --help`. None: as in training if the credit is, else the default."""
    start: Literal["zero", "prompt"] | None = None
    """See `textgym train --help`. None: as in training if the credit is, else the default."""
    device: str = "cpu"
    """Device of the models, by its torch name."""
    environment: tyro.conf.OmitArgPrefixes[EnvironmentOverrides] = field(
        default_factory=EnvironmentOverrides
    )
    """None: as in training; without a checkpoint, the default of `textgym train`."""

    def run(self) -> None:
        """Run the command."""
        import torch

        from textgym.agents import collect_episodes
        from textgym.models import load_tokenizer
        from textgym.models.loading import parse_device
        from textgym.samples import samples_of

        for name, least in (("episodes", 1), ("samples", 0), ("seed", 0)):
            check_whole_number(name, getattr(self, name), least, 2**63 - 1)
        if parse_device(self.device).type == "cpu":
            keep_freed_memory()
        checkpoint = None if self.checkpoint is None else _find_checkpoint(self.checkpoint)
        settings = self._settings(checkpoint)
        num_envs = min(self.episodes, 16)
        agent, envs = self._agent_and_envs(checkpoint, settings, num_envs)
        rollout = collect_episodes(
            agent.policy,
            envs,
            num_envs * math.ceil(self.episodes / num_envs),
            torch.Generator().manual_seed(self.seed),
        )
        console = make_console()
        trained = f"{agent.num_timesteps} tokens of training"
        console.print(f"policy  {checkpoint or self.policy} ({trained})", soft_wrap=True)
        self._print_means(console, rollout, _episode_kl(agent, rollout))
        shown = range(min(self.samples, self.episodes))
        if shown:
            legend = f"\nsamples: score, prompt, tokens coloured by {envs.assigner!r}"
            console.print(legend, soft_wrap=True)
        tokenizer = load_tokenizer(settings.environment.tokenizer_of(settings.policy))
        for sample in samples_of(rollout, tokenizer, shown):
            console.print(sample.to_text())

    def _agent_and_envs(
        self, checkpoint: Path | None, settings: RunSettings, num_envs: int
    ) -> tuple[Agent, CreditAssignment]:
        """The agent, and the environment to play it in, with the agent's gamma and dtype."""
        from textgym.agents import PPO, PPOConfig

        agent, gamma, dtype = None, 1.0, None
        if checkpoint is None:
            check_policy(self.policy)
        else:
            agent = _load_agent(checkpoint, self.device)
            dtype = agent.config.dtype
            if isinstance(agent.config, PPOConfig):  # the other agents do not discount
                gamma = agent.config.gamma
        credit = make_credit(settings.credit, settings.beta, settings.policy, gamma, settings.start)
        envs = settings.environment.make(settings.policy, num_envs, credit, self.device, dtype)
        if agent is None:
            agent = PPO(
                self.policy,
                envs,
                episodes_per_iteration=num_envs,
                minibatch_size=1,
                device=self.device,
            )
        else:
            _adopt_rules(agent, envs, settings.environment.tokenizer)
        return agent, envs

    def _print_means(self, console: Console, rollout: Rollout, kl: torch.Tensor) -> None:
        """Print the means over the episodes that were asked for; a round may play more."""
        scores = rollout.scores[: self.episodes]
        lengths = rollout.episode_lengths[: self.episodes].float()
        kl = kl[: self.episodes]
        console.print(f"score   {_mean_with_interval(scores)}")
        console.print(
            f"KL      {_mean_with_interval(kl)} nats per episode, to the reference policy"
        )
        console.print(f"length  {_mean_with_interval(lengths, sign='')} tokens")
        console.print(
            f"means over {self.episodes} episodes, seed {self.seed}; ±: 95% interval, "
            "normal approximation",
            style="dim",
        )

    def _settings(self, checkpoint: Path | None) -> RunSettings:
        """The flags; where they are silent, the checkpoint's training; else the defaults."""
        from textgym.credit import find_credit_assigner

        trained = RunSettings(policy=self.policy)
        if checkpoint is not None and (run := checkpoint.parent.parent / SETTINGS).is_file():
            trained = RunSettings.read(run.parent, "checkpoint")
        credit, beta, start = trained.credit, trained.beta, trained.start
        if self.credit is not None:
            credit = self.credit
            if find_credit_assigner(credit) is not find_credit_assigner(trained.credit):
                beta = start = None  # what another assigner was given means nothing to this one
        return dataclasses.replace(
            trained,
            environment=self.environment.applied_to(trained.environment),
            credit=credit,
            beta=beta if self.beta is None else self.beta,
            start=start if self.start is None else self.start,
        )


def _find_checkpoint(path: Path) -> Path:
    from textgym.agents.checkpoint import find_checkpoint

    try:
        return find_checkpoint(path)
    except InvalidArgumentError as error:
        raise InvalidArgumentError("checkpoint", str(path), error.remedy) from None


def _load_agent(checkpoint: Path, device: str) -> Agent:
    from textgym.agents import load_agent

    try:
        return load_agent(checkpoint, device=device)
    except InvalidArgumentError as error:
        if error.argument != "path":
            raise
        raise InvalidArgumentError("checkpoint", str(checkpoint), error.remedy) from None


def _adopt_rules(agent: Agent, envs: VectorEnv, tokenizer: str | None) -> None:
    """Let the agent act by this environment's rules, which may have other lengths."""
    from textgym.agents.environment import action_rules

    rules, trained = action_rules(envs), agent.policy.rules
    if (rules.num_actions, rules.eos_token_id) != (trained.num_actions, trained.eos_token_id):
        raise InvalidArgumentError(
            "tokenizer",
            tokenizer,
            f"it has {rules.num_actions} tokens and end token {rules.eos_token_id}; the policy was "
            f"trained with {trained.num_actions} tokens and end token {trained.eos_token_id}; "
            "pass the policy's tokenizer",
        )
    agent.policy.rules = agent.ref_policy.rules = rules


def _episode_kl(agent: Agent, rollout: Rollout) -> torch.Tensor:
    """Summed log-probability ratios of policy and reference policy, shape (num_episodes,)."""
    import torch

    kl = []
    with torch.no_grad():
        for rows in torch.arange(len(rollout.scores)).split(16):
            ids, mask, completion_mask = (
                x[rows].to(agent.config.device)
                for x in (rollout.input_ids, rollout.attention_mask, rollout.completion_mask)
            )
            policy = agent.policy.evaluate(ids, mask, completion_mask)
            reference = agent.ref_policy.evaluate(ids, mask, completion_mask)
            kl.append((policy.logprobs - reference.logprobs).sum(dim=1).cpu())
    return torch.cat(kl)


def _mean_with_interval(values: torch.Tensor, sign: str = "+") -> str:
    """The mean, and its 95% interval if there are several values."""
    mean = f"{values.mean().item():{sign}.3f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {1.96 * values.std().item() / math.sqrt(len(values)):.3f}"
