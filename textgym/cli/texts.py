"""The texts that get credit: those of the command line, of a file, or of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textgym.checks import check_path
from textgym.cli.run_folder import SETTINGS
from textgym.cli.samples_file import SAMPLES, read_samples
from textgym.errors import InvalidArgumentError
from textgym.tables import read_table

__all__ = ["GivenText", "is_run", "read_texts"]


@dataclass(frozen=True)
class GivenText:
    """A text and what comes before it.

    Attributes:
        prompt: Without credit; may be empty.
        text: Its tokens get credit.
        ids: The tokens of both, where they are known: tokens of a policy need not be those that a
            tokenizer makes of the text.
    """

    prompt: str
    text: str
    ids: tuple[list[int], list[int]] | None = None


def read_texts(source: str, prompt: str) -> list[GivenText]:
    """Read texts from a file, or the newest samples of a run.

    Args:
        source: A file that :func:`textgym.tables.read_table` reads, with the column ``completion``
            or ``text``, and perhaps ``prompt``; or the folder of a ``textgym train``.
        prompt: What comes before texts that have no prompt of their own.

    Raises:
        InvalidArgumentError: If there is nothing to read, or a row has no text.
    """
    path = check_path("texts", source)
    if path.is_dir():
        return _of_run(path)
    table = read_table(path, "texts")
    column = next((name for name in ("completion", "text") if name in table.column_names), None)
    if column is None:
        names = ", ".join(table.column_names)
        remedy = f"needs a column text, or prompt and completion; it has {names}"
        raise InvalidArgumentError("texts", source, remedy)
    texts = []
    for number, row in enumerate(table, start=1):
        text, before = row.get(column), row.get("prompt")
        if not isinstance(text, str) or not text.strip():
            remedy = f"row {number} has no {column}; write one, or remove the row"
            raise InvalidArgumentError("texts", source, remedy)
        if not isinstance(before, str | None):
            raise InvalidArgumentError("texts", source, f"the prompt of row {number} is no text")
        texts.append(GivenText(prompt if before is None else before, text))
    return texts


def is_run(source: str) -> bool:
    """Whether texts come from the folder of a run."""
    return (Path(source).expanduser() / SETTINGS).is_file()


def _of_run(folder: Path) -> list[GivenText]:
    kept = read_samples(folder, "texts")
    if not kept:
        remedy = f"is a folder without {SAMPLES}; name a file, or a run of textgym train"
        raise InvalidArgumentError("texts", str(folder), remedy)
    newest = kept[-1].iteration
    return [
        GivenText(
            one.sample.prompt,
            "".join(one.sample.pieces),
            (one.prompt_ids, one.completion_ids),
        )
        for one in kept
        if one.iteration == newest
    ]
