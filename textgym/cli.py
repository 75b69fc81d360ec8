"""The command ``textgym``: demo, train, evaluate, credit.

Each command is a dataclass whose fields are its flags, with their docstrings as help. What is slow
to import is imported when a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from textgym.errors import InvalidArgumentError, TextgymError
from textgym.rendering import credit_text, token_pieces, visible
from textgym.usage import parse

if TYPE_CHECKING:
    import torch
    from gymnasium.vector import VectorEnv

    from textgym.agents import PPO, Agent, Rollout
    from textgym.credit import CreditAssigner

__all__ = ["CreditCommand", "DemoCommand", "EvaluateCommand", "TrainCommand", "main"]

_CHECKPOINT, _ENVIRONMENT = "checkpoint.pt", "environment.json"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the environment is made of."""

    tokenizer: str | None = None
    """Tokenizer: a folder or a hub id. None: the policy's."""
    reward_model: str | None = "embedded"
    """Reward model: "embedded", a folder or a hub id."""
    prompts: str | None = "embedded"
    """Prompts: "embedded", "imdb", a JSONL, CSV or text file, or a hub dataset id."""
    prompt_column: str | None = None
    """Column of the prompts in a file or dataset. None: prompt, text, or the only one."""
    min_new_tokens: int | None = 8
    """Fewest tokens of a completion."""
    max_new_tokens: int | None = 16
    """Most tokens of a completion."""

    def make(
        self,
        policy: str,
        num_envs: int,
        device: str,
        credit: CreditAssigner,
        dtype: str | None = None,
    ) -> VectorEnv:
        """The batched environment, its finished rows waiting for the others."""
        import gymnasium as gym
        from gymnasium.vector import AutoresetMode

        import textgym  # noqa: F401  registers the id
        from textgym.wrappers.vector import CreditAssignment

        arguments = dataclasses.asdict(self) | {"tokenizer": self.tokenizer or policy}
        envs = gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=num_envs,
            autoreset_mode=AutoresetMode.DISABLED,
            device=device,
            dtype=dtype,
            **arguments,
        )
        return CreditAssignment(envs, credit)


_AS_IN_TRAINING = Environment(
    reward_model=None, prompts=None, min_new_tokens=None, max_new_tokens=None
)


def _make_credit(name: str, beta: float | None, policy: str, gamma: float = 1.0) -> CreditAssigner:
    """A credit assigner from the flags that it has a use for."""
    from textgym.credit import find_credit_assigner, get_credit_assigner

    if str(Path.cwd()) not in sys.path:  # "module:name" may stand in the user's folder
        sys.path.insert(0, str(Path.cwd()))
    takes = inspect.signature(find_credit_assigner(name)).parameters
    if beta is not None and "beta" not in takes:
        raise InvalidArgumentError("beta", beta, f"{name} credit has no beta; leave it out")
    given = {"beta": beta, "gamma": gamma, "policy": policy}
    return get_credit_assigner(
        name, **{k: v for k, v in given.items() if v is not None and k in takes}
    )


def _check_policy(policy: str) -> None:
    """Load the policy first, so that an error is about this flag and not about its tokenizer."""
    from textgym.models import load_language_model

    try:
        load_language_model(policy)
    except InvalidArgumentError as error:
        raise InvalidArgumentError("policy", policy, error.remedy) from None


@functools.cache
def _ppo_flags() -> type:
    """The hyperparameters of PPO, with its log folder named as the output of the command."""
    from textgym.agents import PPOConfig

    @dataclass(frozen=True, kw_only=True)
    class PPOFlags(PPOConfig):
        """Hyperparameters of PPO."""

        log_dir: Annotated[str | None, tyro.conf.arg(name="output")] = None
        """Folder of metrics, settings and checkpoint. None: a fresh folder below runs/."""

        def __post_init__(self) -> None:
            """Left to :meth:`TrainCommand.run`, where an error is not one of the parser's."""

    return PPOFlags


# --- Commands -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Compare sparse reward, credit and shaping on real text, in a few minutes.

    Trains the embedded language model three times from the same start and seed, and shows scores,
    learning curves, and completions before and after.
    """

    prompts: str = "embedded"
    """Prompts: "embedded", "imdb" (extra textgym[imdb]), a file, or a hub dataset id."""
    output: str | None = None
    """Folder for results, curves and samples, new or empty. None: a fresh one below runs/."""
    iterations: int = 80
    """Iterations of 16 episodes, for each of the three runs."""
    seed: int = 0
    """Seed of all three runs."""
    policy: str = "embedded"
    """Language model to train: "embedded", a folder or a hub id."""
    tokenizer: str | None = None
    """Tokenizer: a folder or a hub id. None: the policy's."""
    reward_model: str = "embedded"
    """Reward model: "embedded", a folder or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the models compute in. auto: bfloat16 where the processor has instructions for it."""

    def run(self) -> None:
        """Run the command."""
        from textgym.demo import run_demo

        _check_policy(self.policy)
        arguments = dataclasses.asdict(self) | {"tokenizer": self.tokenizer or self.policy}
        run_demo(**arguments)


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a language model with token-level PPO, and save a checkpoint."""

    credit: str = "attention"
    """Who earns the score: a name of `textgym credit --list`, or one of your own as module:name."""
    beta: float | None = None
    """Share of the score that is redistributed, or factor on the potential. None: the default."""
    policy: str = "embedded"
    """Language model to train: "embedded", a folder or a hub id."""
    total_timesteps: int = 20_000
    """Tokens to train on; the last iteration is finished."""
    num_envs: int = 16
    """Episodes that are played at the same time."""
    environment: tyro.conf.OmitArgPrefixes[Environment] = Environment()
    """What the environment is made of."""
    ppo: Annotated[tyro.conf.OmitArgPrefixes[Any], tyro.conf.arg(constructor_factory=_ppo_flags)]
    """Hyperparameters of PPO."""

    def run(self) -> None:
        """Run the command."""
        from textgym.agents import PPO, PPOConfig

        if self.total_timesteps < 1:
            raise InvalidArgumentError(
                "total_timesteps", self.total_timesteps, "must be at least 1"
            )
        names = [field.name for field in dataclasses.fields(PPOConfig)]
        config = PPOConfig(**{name: getattr(self.ppo, name) for name in names})
        _check_policy(self.policy)
        credit = _make_credit(self.credit, self.beta, self.policy, config.gamma)
        envs = self.environment.make(
            self.policy, self.num_envs, config.device, credit, config.dtype
        )
        agent = PPO(self.policy, envs, **dataclasses.asdict(config))
        checkpoint = agent.log_dir / _CHECKPOINT
        if checkpoint.exists():
            raise InvalidArgumentError(
                "output", str(agent.log_dir), f"there is a {_CHECKPOINT} in it; name another folder"
            )
        agent.log_dir.mkdir(parents=True, exist_ok=True)
        settings = dataclasses.asdict(self.environment) | {
            "tokenizer": self.environment.tokenizer or self.policy,
            "credit": self.credit,
            "beta": self.beta,
        }
        (agent.log_dir / _ENVIRONMENT).write_text(json.dumps(settings, indent=2) + "\n")
        console = _console()
        console.print(f"output  {agent.log_dir}")
        try:
            agent.learn(self.total_timesteps, progress_bar=True)
        finally:  # after Ctrl-C too: what has been learned is kept
            agent.save(checkpoint)
        console.print(_training_summary(agent))
        console.print(f"checkpoint  {checkpoint}")


def _training_summary(agent: PPO) -> str:
    scores = [row["rollout/score_mean"] for row in agent.history]
    window = min(10, len(scores))
    last = agent.history[-1]
    return (
        f"{len(scores)} iterations, {agent.num_timesteps} tokens, {last['time/seconds']:.0f} s\n"
        f"mean score  {sum(scores[:window]) / window:+.3f} in the first {window} iterations, "
        f"{sum(scores[-window:]) / window:+.3f} in the last {window}\n"
        f"KL to the reference  {last['rollout/kl']:.3f} nats per episode in the last iteration"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Measure a policy: score, KL to the reference policy, length, and some completions.

    With a checkpoint, environment flags that are not given are those of its training.
    """

    checkpoint: Path | None = None
    """Checkpoint of a bundled agent, or its folder. None: evaluate --policy, untrained."""
    policy: str = "embedded"
    """Language model to evaluate without a checkpoint: "embedded", a folder or a hub id."""
    episodes: int = 128
    """Episodes to play."""
    samples: int = 4
    """Completions to show, coloured by their credit."""
    seed: int = 0
    """Seed of prompts and tokens."""
    credit: str | None = None
    """Credit of the shown completions. None: as in training, or attention."""
    beta: float | None = None
    """See `textgym train --help`. None: as in training, if the credit is."""
    device: str = "cpu"
    """Where the models run, as torch names it."""
    environment: tyro.conf.OmitArgPrefixes[Environment] = _AS_IN_TRAINING
    """None: as in training; without a checkpoint, the default of `textgym train`."""

    def run(self) -> None:
        """Run the command."""
        import torch

        from textgym.agents import collect_episodes
        from textgym.samples import samples_of

        if self.episodes < 1:
            raise InvalidArgumentError("episodes", self.episodes, "must be at least 1")
        checkpoint = self._checkpoint_file()
        environment, credit = self._settings(checkpoint)
        if checkpoint is None:
            _check_policy(self.policy)
        num_envs = min(self.episodes, 16)
        envs = environment.make(self.policy, num_envs, self.device, credit)
        agent = self._load(checkpoint, envs)
        rollout = collect_episodes(
            agent.policy,
            envs,
            num_envs * math.ceil(self.episodes / num_envs),
            torch.Generator().manual_seed(self.seed),
        )
        kl = _episode_kl(agent, rollout)[: self.episodes]
        scores = rollout.scores[: self.episodes]
        lengths = rollout.episode_lengths[: self.episodes].float()
        console = _console()
        trained = f"{agent.num_timesteps} tokens of training"
        console.print(f"policy  {checkpoint or self.policy} ({trained})")
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
        shown = range(min(self.samples, self.episodes))
        if shown:
            console.print(f"\nsamples: score, prompt, tokens coloured by {credit!r}")
        for sample in samples_of(rollout, envs.unwrapped.tokenizer, shown):  # type: ignore[attr-defined]
            console.print(sample.to_text())

    def _checkpoint_file(self) -> Path | None:
        if self.checkpoint is None:
            return None
        path = self.checkpoint.expanduser()
        path = path / _CHECKPOINT if path.is_dir() else path
        if not path.is_file():
            raise InvalidArgumentError("checkpoint", str(path), "there is no such file")
        return path

    def _settings(self, checkpoint: Path | None) -> tuple[Environment, CreditAssigner]:
        """The flags; where they are silent, the checkpoint's training; else the defaults."""
        defaults = dataclasses.asdict(Environment()) | {"credit": "attention", "beta": None}
        saved = checkpoint and checkpoint.with_name(_ENVIRONMENT)
        if saved and saved.is_file():
            defaults |= json.loads(saved.read_text())
        if self.credit is not None:  # another assigner's beta means nothing to this one
            defaults["beta"] = None
        flags = dataclasses.asdict(self.environment) | {"credit": self.credit, "beta": self.beta}
        settings = defaults | {name: v for name, v in flags.items() if v is not None}
        policy = settings["tokenizer"] or self.policy
        credit = _make_credit(settings.pop("credit"), settings.pop("beta"), policy)
        return Environment(**settings), credit

    def _load(self, checkpoint: Path | None, envs: VectorEnv) -> Agent:
        from textgym.agents import PPO, load_agent
        from textgym.agents.rollout import action_rules

        if checkpoint is None:
            return PPO(
                self.policy,
                envs,
                episodes_per_iteration=envs.num_envs,
                minibatch_size=1,
                device=self.device,
            )
        agent = load_agent(checkpoint, device=self.device)
        rules = action_rules(envs)
        trained = agent.policy.rules
        if (rules.num_actions, rules.eos_token_id) != (trained.num_actions, trained.eos_token_id):
            raise InvalidArgumentError(
                "tokenizer",
                self.environment.tokenizer,
                f"it has {rules.num_actions} tokens and the policy was trained with "
                f"{trained.num_actions}; pass the policy's tokenizer",
            )
        agent.policy.rules = agent.ref_policy.rules = rules
        return agent


def _episode_kl(agent: Agent, rollout: Rollout) -> torch.Tensor:
    """Summed log-probability ratios of policy and reference policy, shape (num_episodes,)."""
    import torch

    kl = []
    with torch.no_grad():
        for rows in torch.arange(len(rollout.scores)).split(16):
            texts = (
                x[rows].to(agent.config.device)
                for x in (rollout.input_ids, rollout.attention_mask, rollout.completion_mask)
            )
            ids, mask, completion_mask = texts
            policy = agent.policy.evaluate(ids, mask, completion_mask)
            reference = agent.ref_policy.evaluate(ids, mask, completion_mask)
            kl.append((policy.logprobs - reference.logprobs).sum(dim=1).cpu())
    return torch.cat(kl)


def _mean_with_interval(values: torch.Tensor, sign: str = "+") -> str:
    mean = f"{values.mean().item():{sign}.3f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {1.96 * values.std().item() / math.sqrt(len(values)):.3f}"


@dataclass(frozen=True, kw_only=True)
class CreditCommand:
    """Score a text and show the credit of each of its tokens; or list the methods."""

    text: tyro.conf.Positional[str] = ""
    """The text; it is taken as a completion."""
    show_list: Annotated[bool, tyro.conf.arg(name="list")] = False
    """List the methods of credit assignment and the potentials."""
    prompt: str = ""
    """What stands before the text, without credit. Default: the start token, or the first one."""
    credit: str = "attention"
    """Who earns the score: a name of `textgym credit --list`, or one of your own as module:name."""
    beta: float | None = None
    """Share of the score that is redistributed, or factor on the potential. None: the default."""
    reward_model: str = "embedded"
    """Reward model: "embedded", a folder or a hub id."""
    policy: str = "embedded"
    """Language model whose attention policy-attention reads: "embedded", a folder or a hub id."""
    device: str = "cpu"
    """Where the reward model runs, as torch names it."""

    def run(self) -> None:
        """Run the command."""
        if self.show_list:
            _list_methods(_console())
            return
        from textgym.models import Completions, load_reward_model

        assigner = _make_credit(self.credit, self.beta, self.policy)
        reward_model = load_reward_model(self.reward_model, device=self.device)
        if assigner.needs_causal_reward_model and not reward_model.is_causal:
            raise InvalidArgumentError(
                "reward_model", self.reward_model, f"{self.credit} credit needs a decoder"
            )
        assigner.check_reward_model(reward_model)
        tokenizer = reward_model.tokenizer
        prompt_ids, completion_ids = self._encode(tokenizer)
        limit = reward_model.max_length
        num_tokens = len(prompt_ids) + len(completion_ids)
        if limit is not None and num_tokens > limit:
            raise InvalidArgumentError(
                "text", self.text, f"has {num_tokens} tokens, and the reward model takes {limit}"
            )
        batch = Completions.from_lists([prompt_ids], [completion_ids])
        scored = reward_model.read(batch, assigner.readouts)
        credit = assigner(scored)[scored.completion_mask].tolist()
        pieces = token_pieces(tokenizer, completion_ids)
        console = _console()
        prompt = str(tokenizer.decode(prompt_ids, skip_special_tokens=True))
        console.print(credit_text(prompt, pieces, credit))
        console.print(f"\n{assigner!r}")
        table = Table("token")
        table.add_column("credit", justify="right")
        for piece, value in zip(pieces, credit, strict=True):
            table.add_row(credit_text("", [visible(piece, newlines=True)]), f"{value:+.4f}")
        console.print(table)
        console.print(f"score  {scored.score[0].item():+.4f}")
        console.print(f"sum    {math.fsum(credit):+.4f}")

    def _encode(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        from textgym.prompts import encode_prompts

        text = self.text
        if self.prompt and not (self.prompt[-1].isspace() or text[:1].isspace()):
            text = " " + text
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if self.text else []
        if self.prompt:
            prompt_ids = encode_prompts([self.prompt], tokenizer)[0]
        elif tokenizer.bos_token_id is not None:
            prompt_ids = [tokenizer.bos_token_id]
        else:
            prompt_ids, ids = ids[:1], ids[1:]
        if not ids:
            raise InvalidArgumentError("text", self.text, "has no token to give credit to")
        return prompt_ids, ids


def _list_methods(console: Console) -> None:
    """Print the tables of credit assigners and potentials."""
    from textgym.credit import CREDIT_ASSIGNERS
    from textgym.credit.potentials import POTENTIALS

    def needs(method: Any) -> str:
        names = sorted(type(readout).__name__ for readout in method.readouts)
        return "\n".join([*names, *([] if method.cost == "none" else [method.cost])]) or "nothing"

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    table = Table(
        "credit",
        "causal",
        "signed",
        "sums to",
        "needs",
        "paper",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.columns[0].no_wrap = True
    table.columns[3].max_width = 8  # so that all fits 80 columns
    table.columns[4].min_width = 18
    table.columns[5].width = 10
    table.padding = (0, 1, 0, 0)
    for name, method in CREDIT_ASSIGNERS.items():
        paper = method.paper.replace("arXiv ", "")
        table.add_row(
            name, yes(method.causal), yes(method.signed), method.sums_to, needs(method), paper
        )
    console.print(table)
    console.print(
        "sums to: before what is missing for the score is put on the last token. needs: read-outs "
        "and passes besides the forward pass that scores, for a completion of T tokens. paper: on "
        "arXiv. Potentials of the credit named shaping: " + ", ".join(POTENTIALS) + ".",
        style="dim",
    )


# --- Entry point ----------------------------------------------------------------------------------

# Bars for the loading of small files, and advice to developers, are noise on a command line.
_QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}

_COMMANDS = {
    "demo": DemoCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "credit": CreditCommand,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows ``textgym``; the process's own arguments by default.

    Returns:
        The exit code: 0, 2 after bad input, 130 after an interruption.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        parse(_COMMANDS, arguments).run()
    except SystemExit as end:  # the parser has printed the help
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except (TextgymError, OSError) as error:
        print(f"textgym: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _console() -> Console:
    return Console(highlight=False)
