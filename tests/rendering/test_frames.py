import subprocess
import sys

import numpy as np
import pytest
from rich.text import Text

from textgym.rendering import credit_text, draw_frame, frame_lines, visible

LINES = 6
# Where the layout puts things, in pixels.
MARGIN, CELL_WIDTH, LINE_HEIGHT = 20, 10, 22
COLUMNS = 60


def cell(frame, column, line):
    """The pixels of one character, flat, shape (num_pixels, 3)."""
    x, y = MARGIN + column * CELL_WIDTH, MARGIN + line * LINE_HEIGHT
    return frame[y : y + LINE_HEIGHT, x : x + CELL_WIDTH].reshape(-1, 3)


def main_colour(pixels):
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return tuple(int(part) for part in colours[counts.argmax()])


def is_blank(pixels):
    return len(np.unique(pixels, axis=0)) == 1


@pytest.mark.parametrize("text", ["", "A film", "word " * 1_000, "x" * 1_000, "\n" * 100])
def test_every_text_has_a_frame_of_the_same_even_size(text):
    frame = draw_frame(Text(text), LINES)
    assert frame.dtype == np.uint8
    # Below the lines of text, an empty line and one for the caption.
    height = 2 * MARGIN + (LINES + 2) * LINE_HEIGHT
    assert frame.shape == (height, 2 * MARGIN + COLUMNS * CELL_WIDTH, 3)
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0


@pytest.mark.parametrize("text", ["W" * 1_000, "g_" * 300, "Wg " * 200])
def test_letters_stay_inside_the_margins(text):
    frame = draw_frame(Text(text), LINES)
    inside = np.zeros(frame.shape[:2], dtype=bool)
    inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    assert is_blank(frame[~inside])
    assert not is_blank(frame[inside])


def test_each_character_has_a_cell_of_its_own():
    frame = draw_frame(Text("ab c"), LINES)
    drawn = [not is_blank(cell(frame, column, 0)) for column in range(5)]
    assert drawn == [True, True, False, True, False]
    alone = draw_frame(Text("   c"), LINES)
    assert np.array_equal(cell(frame, 3, 0), cell(alone, 3, 0))


def test_the_credit_has_the_colours_of_the_terminal():
    text = credit_text("", ["aa", "bb", "cc", "dd"], [1.0, 0.25, -1.0, 0.0])
    frame = draw_frame(text, LINES)
    for span in text.spans:
        if span.style.bgcolor is not None:
            expected = tuple(span.style.bgcolor.get_truecolor())
            assert main_colour(cell(frame, span.start, 0)) == expected
    strong, _, negative, none = (main_colour(cell(frame, column, 0)) for column in (0, 2, 4, 6))
    assert strong[2] > strong[0]  # blue
    assert negative[0] > negative[2]  # vermilion
    assert none == main_colour(cell(frame, 20, 0))  # the background


def test_negative_credit_is_underlined():
    marked = draw_frame(credit_text("", ["  "], [-1.0]), LINES)
    plain = draw_frame(credit_text("", ["  "], [1.0]), LINES)
    assert not is_blank(cell(marked, 0, 0))  # a space under which there is a line
    main = plain[MARGIN + 1 : MARGIN + LINE_HEIGHT - 1, MARGIN : MARGIN + 2 * CELL_WIDTH]
    assert is_blank(main.reshape(-1, 3))


def test_the_prompt_is_darker_than_the_completion():
    frame = draw_frame(credit_text("film", ["film"]), LINES)
    prompt = np.concatenate([cell(frame, column, 0) for column in range(4)])
    completion = np.concatenate([cell(frame, column, 0) for column in range(4, 8)])
    assert prompt.max() < completion.max()


def test_long_texts_wrap_between_words():
    words = "a" * 40 + " " + "b" * 40
    frame = draw_frame(Text(words), LINES)
    assert is_blank(cell(frame, 41, 0))
    assert not is_blank(cell(frame, 0, 1))


def test_texts_that_do_not_fit_show_their_last_lines():
    frame = draw_frame(Text("x\n" * 50 + "end"), LINES)
    assert np.array_equal(frame, draw_frame(Text("x\n" * (LINES - 1) + "end"), LINES))


def test_the_caption_has_the_last_line_to_itself():
    long_text = Text("word " * 1_000)
    plain, captioned = draw_frame(long_text, LINES), draw_frame(long_text, LINES, "score +1.50")
    changed = np.flatnonzero((plain != captioned).any(axis=(1, 2)))
    bottom = plain.shape[0] - MARGIN
    assert bottom - LINE_HEIGHT <= changed.min() <= changed.max() < bottom
    assert is_blank(plain[MARGIN + LINES * LINE_HEIGHT :].reshape(-1, 3))


def test_control_characters_become_visible():
    shown = draw_frame(credit_text(visible("a\x1b[2J\tb\x7f"), []), LINES)
    assert np.array_equal(shown, draw_frame(credit_text("a^[[2J^Ib^?", []), LINES))


def test_accents_that_come_as_characters_of_their_own_are_joined():
    joined, apart = draw_frame(Text("caf\u00e9 x"), LINES), draw_frame(Text("cafe\u0301 x"), LINES)
    assert np.array_equal(apart, joined)


@pytest.mark.parametrize("text", ["中文", "😀", "\ud800", "مرحبا", "x\u0316\u0489", "\u200d"])
def test_every_character_can_be_drawn(text):
    frame = draw_frame(credit_text(text, [text], [1.0]), LINES)
    assert frame.shape == draw_frame(Text(""), LINES).shape


def test_frames_grow_with_the_longest_text_within_limits():
    lines = [frame_lines(num_tokens) for num_tokens in (1, 24, 140, 300, 100_000)]
    assert lines == sorted(lines)
    assert (lines[0], lines[-1]) == (4, 32)
    assert lines[2] * COLUMNS >= 140 * 5  # five characters per token


def test_the_drawing_libraries_are_loaded_on_use():
    code = "import sys, textgym.rendering; sys.exit(len({'PIL', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
