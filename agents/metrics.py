"""Scalars of a training run: their means, the log files, the progress bar."""

from __future__ import annotations

import errno
import json
import os
from collections import defaultdict
from contextlib import AbstractContextManager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor

from .interruption import interruptions_held

__all__ = [
    "MetricsLog",
    "ScalarMeans",
    "TrainingProgress",
    "explained_variance",
    "fresh_log_dir",
]


class ScalarMeans:
    """Collects scalars, one set per gradient step, and averages each over the steps."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add the scalars of one gradient step."""
        for name, value in scalars.items():
            self._values[name].append(value.item())

    def means(self) -> dict[str, float]:
        """The mean of each scalar."""
        return {name: float(np.mean(values)) for name, values in self._values.items()}


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(return − value) / Var(return); 0 if the returns do not vary."""
    variance = returns.var(correction=0).item()
    return 0.0 if variance == 0 else 1 - (returns - values).var(correction=0).item() / variance


def fresh_log_dir(prefix: str, root: str | Path = "runs") -> Path:
    """A path in ``root`` that does not exist yet, named after the prefix and the time.

    The folder is made later, by whoever writes to it. To the microsecond, the time tells apart
    agents that are made in the same second.
    """
    name = prefix + datetime.now().strftime("-%Y%m%d-%H%M%S-%f")
    path, number = Path(root) / name, 1
    while path.exists():
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Writes one row of scalars per iteration.

    ``metrics.jsonl`` always equals the run's history. When a run continues, the file starts with
    the rows so far; a file that an earlier run left in the folder is replaced. If the package
    ``tensorboard`` is installed, event files are written to the same folder. Ctrl-C and its like
    wait until a row is written.

    Args:
        log_dir: The folder; created if missing.
        settings: Written to ``config.json``.
        history: Rows of the iterations so far.
    """

    def __init__(
        self, log_dir: Path, settings: dict[str, Any], history: list[dict[str, float]]
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        (log_dir / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        unfinished = log_dir / ".metrics.jsonl.unfinished"
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in history))
        unfinished.replace(log_dir / "metrics.jsonl")
        self._file = (log_dir / "metrics.jsonl").open("ab", buffering=0)
        self._tensorboard = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard hides what an earlier process logged after the checkpoint.
            tokens = int(history[-1]["time/total_timesteps"]) if history else -1
            with interruptions_held():
                self._tensorboard = SummaryWriter(str(log_dir), purge_step=tokens + 1)

    def write(self, row: dict[str, float]) -> None:
        """Append one row; TensorBoard plots it against the number of tokens.

        Raises:
            OSError: If it cannot be written, as when the disk is full. No part of it stays.
        """
        with interruptions_held():
            self._append((json.dumps(row) + "\n").encode())
            if self._tensorboard is not None:
                for name, value in row.items():
                    self._tensorboard.add_scalar(name, value, int(row["time/total_timesteps"]))

    def _append(self, line: bytes) -> None:
        start = self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):  # The disk is full, and would say so next time.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(start)
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with interruptions_held():
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """A progress bar with the score and the KL of the last iteration.

    Args:
        total_timesteps: Number of tokens at which the bar is full.
        enabled: False shows nothing.
        title: Text before the bar, the agent's name.
    """

    def __init__(self, total_timesteps: int, enabled: bool, title: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens · score {task.fields[score]} · KL {task.fields[kl]}"),
            TimeRemainingColumn(),
            disable=not enabled,
        )
        self._task = self._progress.add_task("", total=total_timesteps, score="–", kl="–")

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def update(self, completed: int, row: dict[str, float]) -> None:
        """Show the tokens so far, and the score and KL of a row of scalars."""
        self._progress.update(
            self._task,
            completed=completed,
            score=f"{row['rollout/score_mean']:+.3f}",
            kl=f"{row['rollout/kl']:.2f}",
        )

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
