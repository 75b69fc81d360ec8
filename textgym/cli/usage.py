"""From the words on the command line to a command, or to an error that fits on one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from textgym.errors import TextgymError

__all__ = ["UsageError", "one_line", "parse"]


def parse(commands: Mapping[str, type], arguments: Sequence[str] | None) -> Any:
    """Turn the words on the command line into a command.

    Args:
        commands: Dataclasses by the names of the commands.
        arguments: The words after ``textgym``; None for those of this process.

    Returns:
        The command that was named.

    Raises:
        UsageError: If the arguments do not parse.
        SystemExit: After the help was printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(command)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return app.cli(
                prog="textgym",
                description="Text generation as a reinforcement-learning environment, one token "
                "per step, with dense rewards from the reward model's own attention.",
                args=arguments,
            )
    except SystemExit as end:
        if not end.code:
            raise
        command_word = "".join(f"{name} " for name in arguments[:1] if name in commands)
        message = one_line(complaint.getvalue())
        raise UsageError(f"{message} (see textgym {command_word}--help)") from None


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
    text = " ".join(message)
    if title != "Unrecognized options":
        return text
    hints = [line for section in rest for line in section]
    close = dict.fromkeys(line.split()[0].strip(",") for line in hints if line[:2] == "--")
    commands = [line for line in hints if line.startswith("Available subcommands")]
    hints = [f"did you mean {' or '.join(close)}?"] if close else commands
    return "; ".join([text, *hints])
