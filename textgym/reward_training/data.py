"""What reward models are trained on: pairs of texts, or texts with labels."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from textgym.errors import InvalidArgumentError
from textgym.prompts import read_dataset

__all__ = ["Labelled", "Pair", "load_examples", "split_examples"]

Example = TypeVar("Example")

_LABELS = {"negative": 0, "positive": 1, "0": 0, "1": 1}
"""Labels as text; a CSV file holds nothing else."""


@dataclass(frozen=True)
class Pair:
    """Two texts, of which a person preferred one.

    Attributes:
        chosen: The better text, with its prompt.
        rejected: The other one.
        margin: By how much the score of the better one should at least be higher.
    """

    chosen: str
    rejected: str
    margin: float = 0.0

    @property
    def key(self) -> str:
        """What decides on which side of a split the pair is."""
        return min(self.chosen, self.rejected)


@dataclass(frozen=True)
class Labelled:
    """A text that is good or bad.

    Attributes:
        text: The text.
        label: 1 for positive, 0 for negative.
    """

    text: str
    label: int

    @property
    def key(self) -> str:
        """What decides on which side of a split the text is."""
        return self.text


def load_examples(source: Any) -> list[Pair] | list[Labelled]:
    """Read pairs or labelled texts.

    Args:
        source: A JSONL, JSON, CSV or Parquet file, a hub dataset id (split ``train``), or a
            ``datasets.Dataset``. Columns ``chosen`` and ``rejected``, and optionally ``prompt`` and
            ``margin``, are pairs, as TRL names them. Columns ``text`` and ``label`` are labelled
            texts; the label is 0 or 1, or "negative" or "positive". ``"imdb"`` is the reviews of
            the extra ``textgym[imdb]``.

    Raises:
        InvalidArgumentError: If the columns or their values cannot be used.
        MissingDependencyError: If ``"imdb"`` needs the extra ``textgym[imdb]``.
    """
    if isinstance(source, str) and source == "imdb":
        from textgym.reviews import load_reviews

        reviews = load_reviews("train") + load_reviews("held_out")
        # Mixed, so that the first ones are like all of them.
        reviews.sort(key=lambda review: zlib.adler32(review.text.encode()))
        return [Labelled(review.text, review.label) for review in reviews]
    dataset = read_dataset(source, "data") if isinstance(source, str | Path) else source
    names = list(getattr(dataset, "column_names", []))
    if {"chosen", "rejected"} <= set(names):
        return [_pair(row, number) for number, row in enumerate(dataset)]
    if {"text", "label"} <= set(names):
        return [_labelled(row, number) for number, row in enumerate(dataset)]
    raise InvalidArgumentError(
        "data",
        str(source),
        f"it has the columns {', '.join(names)}, and needs chosen and rejected, or text and label",
    )


def _pair(row: dict[str, Any], number: int) -> Pair:
    prompt = row.get("prompt") or ""
    chosen, rejected = row["chosen"], row["rejected"]
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not isinstance(value, str):
            raise InvalidArgumentError(
                "data",
                f"row {number}, {name}",
                "must be text; put conversations into text first, with the tokenizer's "
                "apply_chat_template",
            )
    return Pair(prompt + chosen, prompt + rejected, _margin(row.get("margin") or 0.0, number))


def _margin(value: Any, number: int) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise InvalidArgumentError(
            "data", f"row {number}, margin {value}", "must be a finite number, or left out"
        )
    return margin


def _labelled(row: dict[str, Any], number: int) -> Labelled:
    label: Any = row["label"]
    if isinstance(label, str):
        label = _LABELS.get(label.lower(), label)
    if label not in (0, 1) or not isinstance(row["text"], str):
        raise InvalidArgumentError(
            "data", f"row {number}, label {row['label']!r}", "needs a text, and a label of 0 or 1"
        )
    return Labelled(row["text"], int(label))


def split_examples(
    examples: Sequence[Example], held_out_one_in: int
) -> tuple[list[Example], list[Example]]:
    """Split examples by a checksum of their text, so that equal texts are on one side.

    Args:
        examples: Pairs or labelled texts.
        held_out_one_in: One in so many is held out.

    Returns:
        Those to train on, and those held out.

    Raises:
        InvalidArgumentError: If nothing is left on one side.
    """
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        key: Any = example
        sides[zlib.crc32(key.key.encode()) % held_out_one_in == 0].append(example)
    if not all(sides):
        raise InvalidArgumentError(
            "data",
            f"{len(examples)} examples",
            f"are too few to hold out one in {held_out_one_in}",
        )
    return sides
