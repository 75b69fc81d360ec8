"""What ``textgym train`` leaves in its output folder, for ``textgym evaluate`` to read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from textgym.cli.flags import EnvironmentFlags
from textgym.errors import InvalidArgumentError

__all__ = ["CHECKPOINT", "SETTINGS", "RunSettings", "find_checkpoint"]

CHECKPOINT = "checkpoint.pt"
"""File of the agent: weights, optimizer, hyperparameters, history."""
SETTINGS = "environment.json"
"""File of the :class:`RunSettings`."""


def find_checkpoint(path: Path) -> Path:
    """The checkpoint's file, from its own path or from that of its folder.

    Raises:
        InvalidArgumentError: If there is no such file.
    """
    path = path.expanduser()
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise InvalidArgumentError("checkpoint", str(path), "there is no such file")
    return path


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The flags of a training run that its checkpoint does not hold.

    The checkpoint holds the hyperparameters, gamma and dtype among them.
    """

    environment: EnvironmentFlags = field(default_factory=EnvironmentFlags)
    policy: str = "embedded"
    credit: str = "abc"
    beta: float | None = None
    start: Literal["zero", "prompt"] | None = None

    def write(self, folder: Path) -> None:
        """Write them into a folder, as one flat JSON object."""
        settings = dataclasses.asdict(self)
        settings = settings.pop("environment") | settings
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """Read what :meth:`write` wrote.

        Files from before the policy was saved have the policy's name as that of its tokenizer.

        Raises:
            InvalidArgumentError: If the file is damaged.
        """
        file = folder / SETTINGS
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            settings.setdefault("policy", settings["tokenizer"])
            names = [field.name for field in dataclasses.fields(EnvironmentFlags)]
            environment = EnvironmentFlags(**{name: settings.pop(name) for name in names})
            return cls(environment=environment, **settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                "checkpoint",
                str(folder),
                f"its {SETTINGS} is damaged ({type(error).__name__}: {error}); without that file, "
                "the environment is made from the flags alone",
            ) from None
