"""The page that shows credit side by side: its data, and what its script does with them."""

from __future__ import annotations

import json
import re

import pytest

from tests.rendering.chromium import dump_dom
from tests.rendering.test_html import HOSTILE, Elements
from textgym.rendering import CreditedText, credit_colour, explorer_page

METHODS = {"abc": "AttentionCredit()", "mine:own": 'own("<quoted>")'}
TEXTS = [
    CreditedText("A ", ["dull", " film"], -1.0, {"abc": [-0.4, -0.6], "mine:own": [-3.0, 2.0]}),
    CreditedText("", HOSTILE, 0.5, {"abc": [0.5, -0.25, 0, 1, -1, 0.25], "mine:own": [0] * 6}),
    CreditedText("A ", ["great", " film", "!"], 2.0, {"abc": [1, 1, 0], "mine:own": [2, 0, 0]}),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    path.write_text(explorer_page(TEXTS, METHODS), encoding="utf-8")
    return path


def shown(page, address=""):
    """The table as a browser draws it: titles of the columns, and by text the cells of tokens."""
    elements = Elements(dump_dom(page, address))
    columns = [one["text"] for one in elements.named("th") if one.get("scope") == "col"]
    rows, cells = {}, None
    for one in elements.found:
        if one.get("scope") == "row":
            cells = rows.setdefault(one["text"], [])
        elif one.get("class") == "textgym-text":
            cells.append([])
        elif one["tag"] == "span" and cells and cells[-1] is not None and "title" in one:
            cells[-1].append(one)
    return columns, rows


# --- The data, without a browser


def test_the_page_holds_every_token_once_with_all_credit(page):
    text = page.read_text(encoding="utf-8")
    (script,) = (one for one in Elements(text).named("script") if one.get("id") == "texts")
    data = json.loads(script["text"])
    assert [method["name"] for method in data["methods"]] == list(METHODS)
    for one, given in zip(data["texts"], TEXTS, strict=True):
        assert one["pieces"] == [piece.replace("\x1b", "␛") for piece in given.pieces]
        assert one["score"] == given.score
        for values, name in zip(one["credit"], METHODS, strict=True):
            assert values == pytest.approx(list(given.credit[name]))
            assert len(values) == len(one["pieces"])


def test_the_page_loads_nothing_and_escapes_everything(page):
    text = page.read_text(encoding="utf-8")
    assert "alert(1)</script>" not in text
    assert not re.search(r"(src|href)=|https?:", text)
    labels = [one["title"] for one in Elements(text).named("label") if "title" in one]
    assert labels == list(METHODS.values())


# --- The script, in Chromium


def test_all_texts_and_methods_are_shown_in_the_order_of_the_file(page):
    columns, rows = shown(page)
    assert columns == ["text", "score", *METHODS]
    assert list(rows) == ["1", "2", "3"]
    for number, given in zip(rows, TEXTS, strict=True):
        for cell in rows[number]:
            assert [span["text"] for span in cell] == [p.replace("\x1b", "␛") for p in given.pieces]


def test_a_token_has_the_colour_and_the_title_that_python_gives_it(page):
    for span, value in zip(shown(page)[1]["1"][0], TEXTS[0].credit["abc"], strict=True):
        (red, green, blue), opacity = credit_colour(value, 0.6)
        assert span["style"] == f"background:rgba({red},{green},{blue},{opacity:.3g})"
        assert span["title"] == f'"{span["text"]}" credit {value:+.4f}, share {abs(value):.0%}'
        assert span["class"] == "negative"


@pytest.mark.parametrize(
    ("address", "order"),
    [
        ("sort=score", ["3", "2", "1"]),
        ("sort=-score", ["1", "2", "3"]),
        ("sort=length", ["2", "3", "1"]),
        ("sort=nonsense", ["1", "2", "3"]),
        ("search=GREAT", ["3"]),
        ("search=a%20dull", ["1"]),
        ("search=%3Cscript", ["2"]),
        ("search=nowhere", []),
    ],
)
def test_texts_are_sorted_and_found(page, address, order):
    assert list(shown(page, address)[1]) == order


def test_methods_can_be_hidden(page):
    columns, rows = shown(page, "methods=mine:own&sort=score")
    assert columns == ["text", "score", "mine:own"]
    assert {len(cells) for cells in rows.values()} == {1}
    assert rows["1"][0][0]["title"].startswith('"dull" credit -3.0000')


def test_one_scale_can_be_shared_by_all_texts(page):
    span = shown(page, "scale=all")[1]["1"][0][0]  # -0.4 of at most 3
    assert span["style"].endswith(f"{credit_colour(-0.4, 3.0).opacity:.3g})")


def test_many_texts_come_in_pages(tmp_path):
    texts = [CreditedText("", [f"word{n}"], n, {"abc": [float(n)]}) for n in range(45)]
    path = tmp_path / "page.html"
    path.write_text(explorer_page(texts, {"abc": ""}), encoding="utf-8")
    assert list(shown(path, "page=3&sort=-score")[1]) == [str(n) for n in range(41, 46)]
    assert list(shown(path, "page=99")[1]) == [str(n) for n in range(41, 46)]
