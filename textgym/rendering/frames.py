"""Text with its credit, as pixels.

rich lays the text out as on a terminal of 60 columns. Pillow draws the characters in DejaVu Sans
Mono, a font that matplotlib ships. Both are loaded with the first frame.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from textgym.rendering.scale import RGB

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

__all__ = ["FRAME_GROUND", "draw_frame", "frame_lines"]

FRAME_GROUND: RGB = (24, 24, 27)
"""The background of frames."""

_COLUMNS = 60
_MIN_LINES, _MAX_LINES = 4, 32
_CHARACTERS_PER_TOKEN = 5

# All in pixels. At this size every glyph is exactly one cell wide. The numbers are even, so frames
# have an even width and height, which the usual video format (H.264 with yuv420p) requires.
_FONT_SIZE = 16
_CELL_WIDTH, _LINE_HEIGHT, _MARGIN = 10, 22, 20

_PLAIN, _DIM = (235, 235, 235), (150, 150, 155)
_NO_STYLE = Style.null()

# The font lacks the pictures of control characters, so they become caret notation (^[ for escape).
_CARET_NOTATION = {0x2400 + code: f"^{chr(code ^ 0x40)}" for code in range(0x20)} | {0x2421: "^?"}
# Half of a surrogate pair is not a character, and Pillow cannot encode it.
_DRAWABLE = {**_CARET_NOTATION, **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}


def frame_lines(max_tokens: int) -> int:
    """How many lines a frame needs to show texts of some length.

    Args:
        max_tokens: Most tokens of a text.

    Returns:
        Room for average English tokens, from 4 to 32 lines.
    """
    needed = -(-max_tokens * _CHARACTERS_PER_TOKEN // _COLUMNS) + 1
    return min(max(needed, _MIN_LINES), _MAX_LINES)


def draw_frame(text: Text, lines: int, caption: Text | str = "") -> np.ndarray:
    """Draw a rich text with its colours, wrapped at 60 columns.

    Text that does not fit scrolls, as in a terminal: the last lines are shown. Characters that the
    font lacks become boxes, and characters without a width of their own are left out.

    Args:
        text: Such as :func:`textgym.rendering.credit_text` returns.
        lines: How many lines of the text to show.
        caption: A line at the bottom, such as the score; what does not fit is left out.

    Returns:
        RGB pixels, shape (height, width, 3), uint8. The shape depends on ``lines`` alone, and
        height and width are even.
    """
    from PIL import Image, ImageDraw

    width = 2 * _MARGIN + _COLUMNS * _CELL_WIDTH
    height = 2 * _MARGIN + (lines + 2) * _LINE_HEIGHT  # an empty line, then the caption
    image = Image.new("RGB", (width, height), FRAME_GROUND)
    canvas = ImageDraw.Draw(image)
    for row, segments in enumerate(_rows(text)[-lines:]):
        _draw_row(canvas, _MARGIN + row * _LINE_HEIGHT, segments)
    of_caption = _rows(Text(caption) if isinstance(caption, str) else caption)
    _draw_row(canvas, height - _MARGIN - _LINE_HEIGHT, of_caption[0] if of_caption else [])
    return np.array(image)


def _rows(text: Text) -> list[list[Segment]]:
    """The lines of a text, each in runs of one style."""
    console = _console()
    drawable = [
        (_drawable(segment.text), segment.style or _NO_STYLE) for segment in text.render(console)
    ]
    return console.render_lines(Text.assemble(*drawable), pad=False)


def _draw_row(canvas: ImageDraw.ImageDraw, y: int, segments: Iterable[Segment]) -> None:
    x = _MARGIN
    for segment in segments:
        x = _draw_run(canvas, x, y, segment.text, segment.style or _NO_STYLE)


def _drawable(text: str) -> str:
    """The text in characters that the font can show, each as wide as rich takes it to be."""
    # The font has most accented letters, but cannot put an accent on a letter.
    composed = unicodedata.normalize("NFC", text).translate(_DRAWABLE)
    return "".join(character for character in composed if character == "\n" or cell_len(character))


def _draw_run(canvas: ImageDraw.ImageDraw, x: int, y: int, text: str, style: Style) -> int:
    """Draw characters of one style with the top left corner at x, y; returns the right edge."""
    right = x + cell_len(text) * _CELL_WIDTH
    if style.bgcolor is not None:
        box = (x, y + 1, right - 1, y + _LINE_HEIGHT - 2)
        canvas.rectangle(box, fill=style.bgcolor.get_truecolor())
    colour: tuple[int, ...] = _DIM if style.dim else _PLAIN
    if style.color is not None:
        colour = style.color.get_truecolor()
    canvas.text((x, y + 1), text, fill=colour, font=_font())
    if style.underline:
        canvas.line((x, y + _LINE_HEIGHT - 4, right - 1, y + _LINE_HEIGHT - 4), fill=colour)
    return right


@cache
def _console() -> Console:
    # With a height given, too, rich does not ask the real terminal for its size.
    return Console(file=io.StringIO(), width=_COLUMNS, height=_MAX_LINES, legacy_windows=False)


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf")
    # The basic layout puts each character into a cell of its own; ligatures would break the grid.
    return ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
