"""Flags that several commands share, and the objects made from them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textgym.checks import check_path
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from textgym.credit import CreditAssigner
    from textgym.wrappers.vector import CreditAssignment

__all__ = [
    "EnvironmentFlags",
    "EnvironmentOverrides",
    "check_output",
    "check_page",
    "check_policy",
    "import_from_current_folder",
    "make_credit",
    "naming_the_policy",
]


@dataclass(frozen=True, kw_only=True)
class EnvironmentFlags:
    """What the environment is made of."""

    tokenizer: str | None = None
    """Tokenizer: a folder or a hub id. None: the policy's."""
    reward_model: str = "embedded"
    """Reward model: "embedded", a folder, a hub id, or your own function as module:name."""
    prompts: str = "embedded"
    """Prompts: "embedded", "imdb", a JSONL, CSV or text file, or a hub dataset id."""
    prompt_column: str | None = None
    """Column of the prompts in a file or dataset. None: prompt, text, or the only one."""
    min_new_tokens: int = 8
    """Fewest tokens of a completion."""
    max_new_tokens: int = 16
    """Most tokens of a completion."""

    def tokenizer_of(self, policy: str) -> str:
        """The name of the tokenizer: the flag's, or else the policy's."""
        return policy if self.tokenizer is None else self.tokenizer

    def make(
        self, policy: str, num_envs: int, credit: CreditAssigner, device: str, dtype: str | None
    ) -> CreditAssignment:
        """Make the batched environment; its finished rows wait for the others.

        Args:
            policy: The language model, whose tokenizer is the default.
            num_envs: Number of rows.
            credit: Divides the score among the tokens.
            device: Where the reward model runs, as torch names it.
            dtype: What the reward model computes in; None for float32.

        Raises:
            InvalidArgumentError: If a flag cannot be used.
        """
        import gymnasium as gym
        from gymnasium.vector import AutoresetMode

        import textgym  # noqa: F401  registers the id
        from textgym.wrappers.vector import CreditAssignment

        import_from_current_folder()
        with naming_the_policy(self.tokenizer, policy):
            envs = gym.make_vec(
                "ABC-RLHF-v0",
                num_envs=num_envs,
                autoreset_mode=AutoresetMode.DISABLED,
                device=device,
                dtype=dtype,
                **dataclasses.asdict(self) | {"tokenizer": self.tokenizer_of(policy)},
            )
        return CreditAssignment(envs, credit)


@dataclass(frozen=True, kw_only=True)
class EnvironmentOverrides:
    """None: as in training; without a checkpoint, the default of `textgym train`."""

    tokenizer: str | None = None
    """Tokenizer: a folder or a hub id."""
    reward_model: str | None = None
    """Reward model: "embedded", a folder, a hub id, or your own function as module:name."""
    prompts: str | None = None
    """Prompts: "embedded", "imdb", a JSONL, CSV or text file, or a hub dataset id."""
    prompt_column: str | None = None
    """Column of the prompts in a file or dataset."""
    min_new_tokens: int | None = None
    """Fewest tokens of a completion."""
    max_new_tokens: int | None = None
    """Most tokens of a completion."""

    def applied_to(self, flags: EnvironmentFlags) -> EnvironmentFlags:
        """The given flags, with those replaced that are set here."""
        given = {name: x for name, x in dataclasses.asdict(self).items() if x is not None}
        return dataclasses.replace(flags, **given)


def make_credit(
    name: str,
    beta: float | None,
    policy: str,
    gamma: float = 1.0,
    start: Literal["zero", "prompt"] | None = None,
) -> CreditAssigner:
    """Make a credit assigner, and pass it those arguments that it takes.

    Args:
        name: A name from ``textgym credit --list``, or ``module:name``.
        beta: None for the assigner's default.
        policy: The language model, for credit that reads the policy's attention.
        gamma: Discount factor of the agent.
        start: What the credit is measured from. None for the assigner's default.

    Raises:
        InvalidArgumentError: If the name is unknown, or the credit does not take beta or start.
    """
    from textgym.credit import find_credit_assigner, get_credit_assigner

    import_from_current_folder()
    takes = inspect.signature(find_credit_assigner(name)).parameters
    given: dict[str, Any] = {"beta": beta, "start": start}
    for flag, value in given.items():
        if value is not None and flag not in takes:
            raise InvalidArgumentError(flag, value, f"{name} credit has no {flag}; leave it out")
    arguments = given | {"gamma": gamma, "policy": policy}
    return get_credit_assigner(
        name, **{k: x for k, x in arguments.items() if x is not None and k in takes}
    )


def import_from_current_folder() -> None:
    """Let "module:name" be a file in the current folder."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def check_output(output: str | Path | None) -> None:
    """Check that a path can be that of the folder for the output.

    Args:
        output: The flag; None if the user did not give it.

    Raises:
        InvalidArgumentError: If it is no path, or a file.
    """
    if output is not None and check_path("output", output).is_file():
        raise InvalidArgumentError("output", str(output), "is a file; name a folder")


def check_page(argument: str, path: Path) -> None:
    """Check that a page can be written to a path.

    Raises:
        InvalidArgumentError: If it does not end in .html, is a folder, or is in none.
    """
    if check_path(argument, path).suffix not in (".html", ".htm"):
        raise InvalidArgumentError(argument, str(path), "must end in .html")
    if path.is_dir():
        raise InvalidArgumentError(argument, str(path), "is a folder; name a file")
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            argument, str(path), "is in no folder that exists; make it first"
        )


@contextmanager
def naming_the_policy(tokenizer: str | None, policy: str) -> Iterator[None]:
    """Let errors about the tokenizer name the policy, if that is where the tokenizer comes from.

    Args:
        tokenizer: The flag; None if the user did not give it.
        policy: The policy's name.
    """
    try:
        yield
    except InvalidArgumentError as error:
        if error.argument != "tokenizer" or tokenizer is not None:
            raise
        remedy = f"about its tokenizer: {error.remedy}"
        raise InvalidArgumentError("policy", policy, remedy) from None


def check_policy(policy: str) -> None:
    """Load the policy, so that an error names this flag and not its tokenizer.

    Raises:
        InvalidArgumentError: If there is no such language model.
    """
    from textgym.models import load_language_model

    try:
        load_language_model(policy)
    except InvalidArgumentError as error:
        raise InvalidArgumentError("policy", policy, error.remedy) from None
