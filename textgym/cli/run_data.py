"""What the folder of a training run says: settings, scalars and samples; also while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgym.checks import check_path, first_line
from textgym.cli.run_folder import SETTINGS
from textgym.cli.samples_file import KeptSample, read_samples
from textgym.errors import InvalidArgumentError

__all__ = ["RunData", "RunGroup", "differences", "grouped", "read_run", "shown"]

_CONFIG, _METRICS = "config.json", "metrics.jsonl"
_NOT_COMPARED = (
    "seed",
    "log_dir",
    "total_timesteps",
    "undo",
    "save_every",
    "save_minutes",
    "save_total_limit",
)
"""Settings that runs of one group may differ in: they do not change what a seed learns."""


@dataclass(frozen=True)
class RunData:
    """A run.

    Attributes:
        folder: Its folder.
        settings: Flags and hyperparameters by name.
        rows: Scalars, a row per iteration.
        samples: Completions that it has kept.
        checkpoint: Iteration of its newest checkpoint; None without one.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[dict[str, float]]
    samples: list[KeptSample]
    checkpoint: int | None

    def values(self, *metrics: str) -> list[float]:
        """The first of some metrics that the run has, by iteration; empty if it has none."""
        for metric in metrics:
            if self.rows and metric in self.rows[0]:
                return [row.get(metric, math.nan) for row in self.rows]
        return []

    @property
    def scores(self) -> list[float]:
        """Mean score of each iteration."""
        return self.values("rollout/score_mean")

    @property
    def kl(self) -> list[float]:
        """KL to the reference policy, in nats per episode; exact where the agent measures it."""
        return self.values("rollout/kl_exact", "rollout/kl")


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seeds only.

    Attributes:
        name: What sets them apart from the other groups.
        runs: At least one.
    """

    name: str
    runs: list[RunData]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all runs have in common."""
        return {k: v for k, v in self.runs[0].settings.items() if k not in _NOT_COMPARED}


def read_run(folder: Path) -> RunData:
    """Read a folder that ``textgym train``, or an agent of one's own program, logs to.

    Raises:
        InvalidArgumentError: If it has no ``config.json`` or ``metrics.jsonl``, or a damaged one.
    """
    folder = check_path("runs", folder)
    settings: dict[str, Any] = {}
    for name in (SETTINGS, _CONFIG):
        if name == _CONFIG or (folder / name).is_file():
            settings |= _read(folder, name, _object)
    return RunData(
        folder,
        settings,
        _read(folder, _METRICS, _rows),
        read_samples(folder, "runs"),
        _newest_checkpoint(folder),
    )


def grouped(runs: Sequence[RunData]) -> list[RunGroup]:
    """Put runs together that differ in nothing but their seeds, in the order of the first ones."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        compared = json.dumps(RunGroup("", [run]).settings, sort_keys=True)
        groups.setdefault(compared, []).append(run)
    unnamed = [RunGroup("", members) for members in groups.values()]
    names = differences(unnamed)
    named = []
    for group in unnamed:
        name = ", ".join(f"{setting} {shown(group.settings.get(setting))}" for setting in names)
        if not names or len(names) > 3:
            name = group.runs[0].folder.name
        if len(group.runs) > 1:
            name += f" ({len(group.runs)} runs)"
        named.append(RunGroup(name, group.runs))
    if len({group.name for group in named}) < len(named):
        return [RunGroup(f"{n}: {group.name}", group.runs) for n, group in enumerate(named, 1)]
    return named


def differences(groups: Sequence[RunGroup]) -> list[str]:
    """Names of the settings in which groups differ."""
    names = dict.fromkeys(name for group in groups for name in group.settings)
    return [
        name
        for name in names
        if len({json.dumps(group.settings.get(name), sort_keys=True) for group in groups}) > 1
    ]


def shown(value: Any) -> str:
    """A setting as people write it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _newest_checkpoint(folder: Path) -> int | None:
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _read(folder: Path, name: str, parse: Any) -> Any:
    try:
        return parse((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = f"has no {name}; name the folder of a run of textgym train"
    except NotADirectoryError:
        remedy = "is a file; name the folder of a run of textgym train"
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = f"its {name} is damaged ({type(error).__name__}: {first_line(error)})"
    raise InvalidArgumentError("runs", str(folder), remedy)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _rows(text: str) -> list[dict[str, float]]:
    """The rows of a log; a last line without its end is still being written."""
    rows = [_object(line) for line in text.split("\n")[:-1]]
    for row in rows:
        row["time/iteration"], row["rollout/score_mean"]
    return rows
