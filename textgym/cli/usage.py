"""From the words on the command line to a command, or to an error that fits on one line."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from textgym.checks import similar_names
from textgym.errors import TextgymError

__all__ = ["START", "UsageError", "flags_of", "one_line", "parse"]

START = """\
textgym: text generation as a reinforcement-learning environment, one token per step

Three commands to start with. None of them needs a network, or models of your own:

  textgym credit "A wonderful film, but the ending is dull." --credit prefix-score
      what each token is worth to the reward model, in seconds
  textgym train --total-timesteps 5000 --output runs/first
      train the language model that comes along, about a minute; then look at
      it with: textgym report runs/first
  textgym demo
      compare sparse and dense reward on the same task, a few minutes

In Python:  gym.make("ABC-RLHF-v0"), after import textgym and gymnasium as gym
All commands:  textgym --help
Documentation:  https://github.com/textgym/textgym/tree/main/docs"""
"""What `textgym` without a command prints."""


def parse(commands: Mapping[str, type], arguments: Sequence[str]) -> Any:
    """Turn the words on the command line into a command.

    Args:
        commands: Dataclasses by the names of the commands.
        arguments: The words after ``textgym``.

    Returns:
        The command that was named. Its field ``given``, if it has one, holds the names of the flags
        that were written.

    Raises:
        UsageError: If the arguments do not parse, or a flag with several values is there twice.
        SystemExit: After the help was printed.
    """
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(command)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = app.cli(
                prog="textgym",
                description="Text generation as a reinforcement-learning environment, one token "
                "per step, with dense rewards from the reward model's own attention.",
                args=arguments,
            )
    except SystemExit as end:
        if not end.code:
            raise
        word = next((name for name in arguments[:1] if name in commands), None)
        message = one_line(complaint.getvalue())
        hint = _hint(message, word, commands)
        see = f"textgym {word}" if word else "textgym"
        raise UsageError(f"{message}{hint} (see {see} --help)") from None
    given = _given(type(command), arguments)
    _check_lists(type(command), given, arguments[0])
    if any(one.name == "given" for one in fields(command)):
        return replace(command, given=frozenset(given))
    return command


def _given(command: type, arguments: Sequence[str]) -> list[str]:
    """The flags that were written, as often as they were: "undo" for --undo and for --no-undo."""
    words = itertools.takewhile(lambda word: word != "--", arguments)
    names = [word.split("=")[0].replace("_", "-") for word in words]
    flags = {_option(flag): flag for flag in flags_of(command)}
    flags |= {_option(f"no_{flag}"): flag for flag in flags.values()}
    return [flags[name] for name in names if name in flags]


def _check_lists(command: type, given: Sequence[str], name: str) -> None:
    """Refuse a flag with several values that is there twice: the parser forgets the first ones."""
    for flag, hint in flags_of(command).items():
        if get_origin(hint) is tuple and given.count(flag) > 1:
            raise UsageError(
                f"{_option(flag)} is there twice: write it once, with all of its values behind it "
                f"(see textgym {name} --help)"
            )


@functools.cache
def flags_of(command: type) -> dict[str, Any]:
    """The flags of a command, such as "learning_rate" of --learning-rate, with their annotations.

    Args:
        command: A dataclass, as tyro reads it: fields that are dataclasses add their own flags.
    """
    flags: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for one in fields(command):
        hint, name = hints[one.name], one.name
        nested: list[Any] = [p for p in get_args(hint) if isinstance(p, type) and is_dataclass(p)]
        for mark in getattr(hint, "__metadata__", ()):
            name = getattr(mark, "name", None) or name
            factory = getattr(mark, "constructor_factory", None)
            nested += [factory()] if factory else []
        if nested:
            flags |= flags_of(nested[0])
        elif not {tyro.conf.Positional, tyro.conf.Suppress} & {*getattr(hint, "__metadata__", ())}:
            flags[name] = hint
    return flags


def _hint(message: str, command: str | None, commands: Mapping[str, type]) -> str:
    """What to write instead of an option that a command does not have."""
    if not message.startswith("Unrecognized"):
        return ""
    words = (re.split("[,=]", word)[0] for word in message.split() if word.startswith("--"))
    wrong = next(words, "").removeprefix("--").replace("-", "_")
    having = {name: flags_of(one) for name, one in commands.items()}
    own = similar_names(wrong, having.get(command or "", {}))
    if own:
        return f"; did you mean {_option(own[0])}?"
    owners = [f"textgym {name}" for name, flags in having.items() if wrong in flags]
    return f"; {_option(wrong)} is an option of {' and of '.join(owners)}" if owners else ""


def _option(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


class UsageError(TextgymError):
    """The arguments do not parse."""


def one_line(box: str) -> str:
    """The message in the parser's box, without the frame and the excerpts of the help.

    A box has a title, a message, and further sections between rules::

        ╭─ Unrecognized options ──────────────╮
        │ Unrecognized options: --sed, 3      │
        │ ─────────────────────────────────── │
        │ Perhaps you meant:                  │
        │     --seed INT                      │
        │ ─────────────────────────────────── │
        │ For full helptext, run textgym -h   │
        ╰─────────────────────────────────────╯
    """
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯─| ") for line in box.splitlines()]
    # A rule is a line of dashes alone, of either kind.
    title, *lines = [line if line.strip("-") else "" for line in lines]
    sections = [list(group) for filled, group in itertools.groupby(lines, bool) if filled]
    message, *rest = sections or [[title]]
    text = re.sub(r" \(applied to [^)]*\)", "", " ".join(message))
    if title != "Unrecognized options":
        return text
    commands = [line for section in rest for line in section if line.startswith("Available sub")]
    return "; ".join([text, *commands])
