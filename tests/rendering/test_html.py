"""Text with its credit in HTML, read by a parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from textgym.rendering import credit_colour, credit_html, episode_html, legend_html, make_page
from textgym.rendering.html import json_block

HOSTILE = ["<script>alert(1)</script>", ' "quoted"', "&amp;", "\x1b[2J", "</span>", " plain"]
CREDIT = [0.5, -0.25, 0.0, 1.0, -1.0, -0.0625]


class Elements(HTMLParser):
    """The elements of a page in order, with attributes and own text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self._open = [], []
        self.feed(page)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.found.append(element)
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        if self._open:
            self._open[-1]["text"] += data

    def named(self, tag):
        return [element for element in self.found if element["tag"] == tag]


def test_every_token_is_there_once_and_escaped():
    spans = Elements(credit_html("A <b>film</b>", HOSTILE, CREDIT)).named("span")
    assert [span["text"] for span in spans] == [
        "A <b>film</b>",
        *(piece.replace("\x1b", "␛") for piece in HOSTILE),
    ]
    assert spans[0]["class"] == "prompt"


def test_hovering_shows_token_credit_and_share():
    spans = Elements(credit_html("", [" good", " bad"], [0.75, -0.25])).named("span")
    assert [span["title"] for span in spans] == [
        '" good" credit +0.7500, share 75%',
        '" bad" credit -0.2500, share 25%',
    ]


def test_the_colours_are_those_of_the_scale():
    spans = Elements(credit_html("", HOSTILE, CREDIT)).named("span")
    for span, value in zip(spans, CREDIT, strict=True):
        (red, green, blue), opacity = credit_colour(value, 1.0)
        assert span["style"] == f"background:rgba({red},{green},{blue},{opacity:.3g})"
        assert (span.get("class") == "negative") == (value <= -0.1)


def test_a_text_without_credit_has_no_colours():
    assert "style" not in credit_html("A film", [" is"])
    assert "NaN" not in credit_html("", ["a"], [0.0])


def test_one_credit_per_token():
    with pytest.raises(ValueError, match="zip"):
        credit_html("", ["a", "b"], [1.0])


def test_an_episode_ends_with_score_and_legend():
    under_way = episode_html("A", [" b"])
    assert "score" not in under_way.split("</style>")[1]
    finished = Elements(episode_html("A", [" b", " c"], [-0.5, 2.0], 1.5))
    text = " ".join(element["text"] for element in finished.found)
    assert "score +1.50" in text
    assert "credit −2.00" in text
    assert "+2.00 (the largest credit of a token" in text


def test_a_legend_without_a_limit():
    assert "no credit" in legend_html(0.0)


def test_pages_load_nothing_and_escape_their_title():
    page = make_page("a </title><b>", "<p>x</p>", script="1")
    assert Elements(page).named("title")[0]["text"] == "a </title><b>"
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_data_in_a_page_cannot_end_its_element():
    value = {"text": "</script><!-- <script> & é"}
    (script,) = Elements(json_block("data", value)).named("script")
    assert json.loads(script["text"]) == value
    assert "<" not in script["text"]
