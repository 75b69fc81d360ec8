"""The folder of a ``textgym train``: its settings, and who may write into it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from textgym.cli.flags import EnvironmentFlags
from textgym.errors import InvalidArgumentError
from textgym.locking import alone_in

__all__ = ["SETTINGS", "RunSettings", "locked", "newest_run"]

SETTINGS = "environment.json"
"""File of the :class:`RunSettings`."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The flags of a training run that its checkpoints do not hold.

    A checkpoint holds the hyperparameters, gamma and dtype among them.
    """

    environment: EnvironmentFlags = field(default_factory=EnvironmentFlags)
    policy: str = "embedded"
    credit: str = "abc"
    beta: float | None = None
    start: Literal["zero", "prompt"] | None = None
    num_envs: int = 16
    total_timesteps: int = 20_000

    def write(self, folder: Path) -> None:
        """Write them into a folder, as one flat JSON object."""
        settings = dataclasses.asdict(self)
        settings = settings.pop("environment") | settings
        unfinished = folder / f"{SETTINGS}.unfinished"  # A kill must not damage what is there.
        unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(folder / SETTINGS)

    @classmethod
    def read(cls, folder: Path, argument: str) -> RunSettings:
        """Read what :meth:`write` wrote.

        Args:
            folder: The run's.
            argument: The flag that named it, for errors.

        Raises:
            InvalidArgumentError: If the file is missing or damaged.
        """
        file = folder / SETTINGS
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
            names = [field.name for field in dataclasses.fields(EnvironmentFlags)]
            environment = EnvironmentFlags(**{name: settings.pop(name) for name in names})
            names = [field.name for field in dataclasses.fields(cls)]
            missing = set(names) - set(settings) - {"environment"}
            if missing:  # Its default may not be what the run had.
                raise KeyError(min(missing))
            run = cls(environment=environment, **settings)
            _check_types(environment)
            _check_types(run)
            return run
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgumentError(
                argument,
                str(folder),
                f"its {SETTINGS} is missing or damaged ({type(error).__name__}: {error})",
            ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other process may train in a folder; it ends with the process, too.

    Raises:
        InvalidArgumentError: If another process does.
    """
    with alone_in(folder, "training in this folder"):
        yield


def newest_run(root: Path = Path("runs")) -> Path | None:
    """The run below a folder that has written a checkpoint last; None if there is none."""
    folders = [folder for folder in root.glob("*/checkpoints") if any(folder.iterdir())]
    newest = max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


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
