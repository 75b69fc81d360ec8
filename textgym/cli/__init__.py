"""The command line: ``textgym demo``, ``train``, ``evaluate``, ``credit`` and others.

Each command is a dataclass in a file of its own. Its fields are the flags, and their docstrings are
the help. Slow imports wait until a command runs, so that ``textgym --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from textgym import __version__
from textgym.cli.benchmark import BenchmarkCommand
from textgym.cli.credit import CreditCommand
from textgym.cli.demo import DemoCommand
from textgym.cli.evaluate import EvaluateCommand
from textgym.cli.report import ReportCommand
from textgym.cli.train import TrainCommand
from textgym.cli.train_reward import TrainRewardCommand
from textgym.cli.usage import START, parse
from textgym.errors import TextgymError

__all__ = ["main"]

_COMMANDS = {
    "demo": DemoCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "credit": CreditCommand,
    "report": ReportCommand,
    "train-reward": TrainRewardCommand,
    "benchmark": BenchmarkCommand,
}

# Progress bars for small files and advice to developers are noise on a command line.
_QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after ``textgym``; by default those of this process.

    Returns:
        The exit code: 0 on success or if the output is no longer read, 2 after bad input, 130 after
        Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(START)
        return 0
    if arguments[0] in ("--version", "-V"):
        print(f"textgym {__version__}")
        return 0
    try:
        parse(_COMMANDS, arguments).run()
    except SystemExit as end:  # the parser printed the help
        return int(end.code or 0)
    except KeyboardInterrupt as interruption:
        return 128 + getattr(interruption, "number", 2)  # 2: SIGINT, from Ctrl-C
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except (TextgymError, OSError) as error:
        print(f"textgym: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
