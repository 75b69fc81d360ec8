"""An episode on a terminal: what stays on the screen after it was drawn over and over."""

from __future__ import annotations

import copy
import io
import re

import pytest
from rich.console import Console
from rich.text import Text

import textgym.rendering.live
from textgym.rendering import LiveText, caption_text, credit_text

UP_AND_CLEAR = re.compile(r"\x1b\[(\d+)A\r\x1b\[J")
STYLES = re.compile(r"\x1b\[[0-9;]*m")


def screen(written):
    """The lines of a terminal after some output, of the two commands that are used."""
    lines, rest = [""], STYLES.sub("", written)
    while rest:
        command = UP_AND_CLEAR.match(rest)
        if command:
            assert lines[-1] == ""
            del lines[len(lines) - 1 - int(command[1]) :]
            lines.append("")
            rest = rest[command.end() :]
        else:
            character, rest = rest[0], rest[1:]
            if character == "\n":
                lines.append("")
            else:
                lines[-1] += character
    return [line.rstrip() for line in lines]


@pytest.fixture
def output(monkeypatch):
    """Make consoles write into a terminal of 20 columns and 5 lines, without waiting."""
    buffer = io.StringIO()
    monkeypatch.setattr(
        textgym.rendering.live,
        "_console",
        lambda: Console(
            file=buffer, width=20, height=5, force_terminal=True, color_system="truecolor"
        ),
    )
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return buffer


def play(live, prompt, pieces, credit):
    live.start(credit_text(prompt, []))
    for end in range(1, len(pieces)):
        live.grow(credit_text(prompt, pieces[:end]))
    live.finish(credit_text(prompt, pieces, credit), Text("score +1.00"))


def test_the_text_is_on_the_screen_once_with_its_caption_below(output):
    play(LiveText(fps=10), "This film", [" is", " a", " quiet", " wonder"], [1, 2, 3, 4])
    assert screen(output.getvalue()) == ["This film is a quiet", "wonder", "score +1.00", ""]
    assert "48;2;" in output.getvalue()  # a background colour: credit


def test_a_text_longer_than_the_screen_is_whole_at_the_end(output):
    words = [f" word{n:02}" for n in range(40)]
    play(LiveText(fps=10), "A", words, [1.0] * 40)
    shown = screen(output.getvalue())
    assert " ".join(shown[:-2]).split() == ["A", *(word.strip() for word in words)]
    # No more was drawn over than the screen has lines above the cursor.
    assert max(int(lines) for lines in UP_AND_CLEAR.findall(output.getvalue())) <= 4


def test_the_next_episode_starts_below(output):
    live = LiveText(fps=10)
    play(live, "One", [" two"], [1.0])
    play(live, "Three", [" four"], [1.0])
    assert screen(output.getvalue()) == [
        *("One two", "score +1.00"),
        *("Three four", "score +1.00", ""),
    ]


def test_steps_take_the_time_that_people_need(output, monkeypatch):
    waited, now = [], [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", waited.append)
    live = LiveText(fps=10)
    live.start(Text("A"))
    now[0] += 0.03
    live.grow(Text("A b"))
    assert waited == [pytest.approx(0.07)]
    now[0] += 5.0
    live.grow(Text("A b c"))
    assert len(waited) == 1


def test_a_file_gets_every_token_once_and_then_the_credit(capsys):
    credit = [0.5, -0.5]
    live = LiveText(fps=10)
    live.start(credit_text("A", []))
    live.grow(credit_text("A", [" b"]))
    live.finish(credit_text("A", [" b", " c"], credit), caption_text(1.0, credit))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith("A b\nA b c\nscore +1.00")


def test_copies_count_for_themselves(output):
    live = LiveText(fps=10)
    live.start(Text("one"))
    other = copy.deepcopy(live)
    live.grow(Text("one two"))
    assert vars(other) != vars(live)
