"""Weights & Biases, when asked: the rows of ``metrics.jsonl`` as a run of a project."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError

__all__ = ["WandbLog", "check_project"]

_ID_FILE = "wandb_id"
_PROJECT = re.compile(r"[^/\\#?%:]{1,128}")


class WandbLog:
    """Logs rows to Weights & Biases, against the number of tokens.

    The run's id is kept in the folder, so that a training that goes on goes on there, too. Where
    and how it logs is said by the package's own variables: ``WANDB_MODE=offline`` needs no network.

    Args:
        project: Name of the project.
        folder: The run's folder, which exists.
        settings: Flags and hyperparameters.

    Raises:
        InvalidArgumentError: If the package refuses, as when nobody is logged in.
    """

    def __init__(self, project: str, folder: Path, settings: dict[str, Any]) -> None:
        wandb = check_project(project)
        file = folder / _ID_FILE
        if not file.is_file():
            file.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
        try:
            self._run = wandb.init(
                project=project,
                dir=str(folder),
                name=folder.name,
                id=file.read_text(encoding="utf-8").strip(),
                resume="allow",
                config=settings,
            )
        except wandb.Error as error:
            remedy = f"{first_line(error).rstrip('.')}: call wandb login, or set WANDB_MODE=offline"
            raise InvalidArgumentError("wandb", project, remedy) from None

    def write(self, row: dict[str, float]) -> None:
        """Log one row."""
        from textgym.agents.interruption import interruptions_held  # Imported here: slow.

        with interruptions_held():
            self._run.log(row, step=int(row["time/total_timesteps"]))

    def close(self) -> None:
        """Send what is left."""
        from textgym.agents.interruption import interruptions_held  # Imported here: slow.

        with interruptions_held():
            self._run.finish()


def check_project(project: str) -> ModuleType:
    """Check the name of a project, and import the package.

    Returns:
        The package.

    Raises:
        InvalidArgumentError: If the name cannot be one, or the package is not installed.
    """
    if not _PROJECT.fullmatch(project):
        remedy = r"must be 1 to 128 characters, and none of / \ # ? % :"
        raise InvalidArgumentError("wandb", project, remedy)
    try:
        import wandb
    except ImportError:
        remedy = 'needs the package wandb: pip install "textgym[wandb]"'
        raise InvalidArgumentError("wandb", project, remedy) from None
    return wandb
