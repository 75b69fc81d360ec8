import re

import pytest
from rich.console import Console

from textgym.rendering import caption_text, credit_text, legend_text, to_ansi, visible

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def backgrounds(text):
    """The background of each coloured span, by the text that it covers."""
    return {
        text.plain[span.start : span.end]: span.style.bgcolor.get_truecolor()
        for span in text.spans
        if getattr(span.style, "bgcolor", None)
    }


@pytest.mark.parametrize("credit", [None, [0.5, -0.25, 0.0]])
def test_the_text_itself_is_kept(credit):
    pieces = [" good", " [bold]film[/]", "\n!"]
    text = credit_text("A very", pieces, credit)
    assert text.plain == "A very good [bold]film[/]\n!"
    assert ANSI.sub("", to_ansi(text)) == text.plain


def test_long_texts_are_not_broken_into_lines():
    pieces = [" word"] * 5_000
    assert ANSI.sub("", to_ansi(credit_text("", pieces, [1.0] * 5_000))) == "".join(pieces)


def test_the_colour_tells_sign_and_strength():
    shown = backgrounds(credit_text("", ["a", "b", "c", "d"], [1.0, 0.5, -1.0, 0.0]))
    assert set(shown) == {"a", "b", "c"}  # no credit, no colour
    assert shown["a"].blue > shown["a"].red
    assert shown["c"].red > shown["c"].blue
    excess = {piece: colour.blue - colour.red for piece, colour in shown.items()}
    assert excess["a"] > excess["b"] > 0 > excess["c"]


def test_the_sign_survives_without_colours():
    text = credit_text("", ["a", "b"], [1.0, -1.0])
    console = Console(force_terminal=True, no_color=True, width=80)
    with console.capture() as capture:
        console.print(text)
    assert re.search(r"\x1b\[[0-9;]*4m", capture.get().split("a")[1])  # underlined from here on
    assert not re.search(r"\x1b\[[0-9;]*4m", capture.get().split("a")[0])


def test_the_limit_is_the_credit_with_the_full_colour():
    half = backgrounds(credit_text("", ["a"], [1.0], limit=2.0))["a"]
    assert half == backgrounds(credit_text("", ["a", "b"], [1.0, 2.0]))["a"]
    beyond = backgrounds(credit_text("", ["a"], [9.0], limit=2.0))["a"]
    assert beyond == backgrounds(credit_text("", ["a"], [1.0]))["a"]


def test_the_legend_runs_from_the_negative_limit_to_the_positive_one():
    legend = legend_text(2.5)
    assert legend.plain.startswith("credit -2.50 ")
    assert legend.plain.endswith(" +2.50 (largest)")
    colours = [span.style.bgcolor.get_truecolor() for span in legend.spans if span.style.bgcolor]
    ends = backgrounds(credit_text("", ["a", "b"], [-2.5, 2.5]))
    assert (colours[0], colours[-1]) == (ends["a"], ends["b"])
    assert len(set(colours)) == len(colours) == 10  # each its own, and none at 0


def test_a_caption_without_credit_says_so():
    assert caption_text(0.0, [0.0, 0.0]).plain == "score +0.00   no credit"
    assert caption_text(-1.0, None).plain == "score -1.00"


def test_no_completion_and_no_credit_at_all():
    assert credit_text("A film", []).plain == "A film"
    assert credit_text("A film", [], []).plain == "A film"
    assert backgrounds(credit_text("", ["a", "b"], [0.0, 0.0])) == {}


def test_control_characters_become_visible():
    hostile = "a\x1b[2J\x07\x7f\x9b31m\rb"
    for text in (credit_text(hostile, []), credit_text("", [hostile], [1.0])):
        assert text.plain == "a␛[2J␇␡\ufffd31m␍b"
    assert visible("a\nb") == "a\nb"
    assert visible("a\nb", newlines=True) == "a␊b"


def test_one_credit_per_token():
    with pytest.raises(ValueError, match="zip"):
        credit_text("", ["a", "b"], [1.0])
