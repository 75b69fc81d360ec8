"""From the arguments of the command line to a command, or to an error that fits one line."""

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

__all__ = ["UsageError", "parse"]


def parse(commands: Mapping[str, type], arguments: Sequence[str] | None) -> Any:
    """Turn arguments into a command, or bad ones into an error of one line.

    Args:
        commands: Dataclasses by the names of the commands.
        arguments: What follows ``textgym``; None for the process's own arguments.

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
        place = "".join(f"{name} " for name in arguments[:1] if name in commands)
        said = _one_line(complaint.getvalue())
        raise UsageError(f"{said} (see textgym {place}--help)") from None


class UsageError(TextgymError):
    """The arguments do not parse."""


def _one_line(frame: str) -> str:
    """What the parser's box says, without its frame and its excerpts of the help.

    A box has a title, a message, and after rules further sections::

        ╭─ Unrecognized options ──────────────╮
        │ Unrecognized options: --sed, 3      │
        │ ─────────────────────────────────── │
        │ Perhaps you meant:                  │
        │     --seed INT                      │
        │ ─────────────────────────────────── │
        │ For full helptext, run textgym -h   │
        ╰─────────────────────────────────────╯
    """
    frame = re.sub(r"\x1b\[[0-9;]*m", "", frame)
    lines = [line.strip("│╭╮╰╯─| ") for line in frame.splitlines()]
    # Without its dashes, of either kind, a rule is empty.
    title, *lines = [line if line.strip("-") else "" for line in lines]
    sections = [list(group) for filled, group in itertools.groupby(lines, bool) if filled]
    message, *rest = sections or [[title]]
    said = " ".join(message)
    if title != "Unrecognized options":
        return said
    hints = [line for section in rest for line in section]
    close = dict.fromkeys(line.split()[0].strip(",") for line in hints if line[:2] == "--")
    commands = [line for line in hints if line.startswith("Available subcommands")]
    hints = [f"did you mean {' or '.join(close)}?"] if close else commands
    return "; ".join([said, *hints])
