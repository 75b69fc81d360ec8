"""The page on the command line: commands and flags, from the dataclasses that declare them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from making.docstrings import Field, fields_of, markdown
from textgym.cli import _COMMANDS as COMMANDS
from textgym.cli.flags import EnvironmentFlags, EnvironmentOverrides

__all__ = ["flag_name", "page"]

_EXAMPLES = {
    "demo": "textgym demo",
    "train": "textgym train --credit prefix-score --seed 1\n"
    "textgym train --resume runs/...    # continue where it stopped",
    "evaluate": "textgym evaluate --checkpoint runs/...",
    "credit": 'textgym credit "a dull story, but wonderful actors" --credit prefix-score abc\n'
    "textgym credit --list    # the methods, and what each one needs",
    "report": "textgym report runs/first runs/second",
    "train-reward": "textgym train-reward pairs.jsonl --base gpt2 --output my_reward_model",
    "benchmark": "textgym benchmark list\ntextgym benchmark run main --jobs 2",
}
_ALSO = {"train": EnvironmentFlags, "evaluate": EnvironmentOverrides}
"""Classes whose fields are flags of a command, too."""
_AFTER = {
    "train": "Every hyperparameter of PPO is a flag too, such as `--learning-rate`: those of "
    "[every agent](agents.md#hyperparameters-of-every-agent) and "
    "[PPO's own](agents/ppo.md#hyperparameters). `log_dir` is called `--output`.",
    "report": "[Looking at it](looking.md#the-page-of-runs) shows such a page.",
    "benchmark": "[Protocol](protocol.md) describes the suites.",
}
_OPENING = """\
# Command line

All commands and flags. `textgym COMMAND --help` shows the same. A wrong command line gives one line
on stderr and exit code 2, and nothing is written before that. If a flag is given twice, the last
value counts. A flag that takes several values is given once, with all of them behind it.
"""


def flag_name(field: Field) -> str:
    """How a field is written on the command line."""
    named = re.search(r"name='([^']+)'", field.annotation)
    if "tyro.conf.Positional" in field.annotation:
        return field.name.upper()
    return "--" + (named[1] if named else field.name).replace("_", "-")


def page() -> str:
    """The page in Markdown."""
    parts = [_OPENING]
    for name, command in COMMANDS.items():
        parts += [f"## textgym {name}", markdown(inspect.cleandoc(command.__doc__ or ""))]
        parts.append(f"```sh\n{_EXAMPLES.get(name, f'textgym {name}')}\n```")
        rows = ["| flag | default | meaning |", "|---|---|---|"]
        for cls in (command, *([_ALSO[name]] if name in _ALSO else [])):
            rows += [
                _row(field)
                for field in fields_of(Path(inspect.getfile(cls)), cls.__name__)
                if not re.search("OmitArgPrefixes|Suppress", field.annotation)
            ]
        parts.append("\n".join(rows))
        parts += [_AFTER[name]] if name in _AFTER else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(field: Field) -> str:
    default = f"`{field.default}`" if field.default else ""
    return f"| `{flag_name(field)}` | {default} | {markdown(field.meaning)} |"
