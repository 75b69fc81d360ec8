"""What ``textgym train`` leaves in its output folder, for ``textgym evaluate`` to read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
            run = cls(environment=environment, **settings)
            _check_types(environment)
            _check_types(run)
            return run
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                "checkpoint",
                str(folder),
                f"its {SETTINGS} is damaged ({type(error).__name__}: {error}); without that file, "
                "the environment is made from the flags alone",
            ) from None


def _check_types(record: Any) -> None:
    """Check that the fields of a dataclass have their types.

    Raises:
        TypeError: If one has not.
    """
    for name, hint in get_type_hints(type(record)).items():
        value, choices = getattr(record, name), get_args(hint) or (hint,)
        allowed = [get_args(one) if get_origin(one) is Literal else one for one in choices]
        for one in allowed:
            if value in one if isinstance(one, tuple) else _is_of(value, one):
                break
        else:
            raise TypeError(f"{name} is {value!r}")


def _is_of(value: Any, kind: type) -> bool:
    if kind is float:  # JSON writes whole numbers without a point.
        kind = int | float  # type: ignore[assignment]
    return isinstance(value, kind) and not isinstance(value, bool)
