"""An episode on a terminal while it is written: each token as it comes, then the credit in place.

On a terminal the text is drawn again over itself at every step, no faster than people can watch.
Where output goes to a file, or to a notebook, tokens are printed one after the other, and the text
with its credit follows below.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

__all__ = ["LiveText"]


class LiveText:
    """Shows one growing text after the other.

    It keeps numbers only, so an environment that has one can be copied and sent to a process.

    Args:
        fps: The most steps that are shown per second on a terminal.
    """

    def __init__(self, fps: float) -> None:
        self._seconds = 1 / fps
        self._num_lines = 0  # that the text takes on the terminal now
        self._num_characters = 0  # of the text that were printed elsewhere
        self._shown_at = 0.0

    def start(self, text: Text) -> None:
        """Show the beginning of a text, below whatever was shown before."""
        self._num_lines = self._num_characters = 0
        self.grow(text)

    def grow(self, text: Text) -> None:
        """Show a text that has grown at its end."""
        console = _console()
        if console.is_terminal:
            self._draw(console, text, most_lines=max(console.height - 1, 1))
        else:
            console.print(Text(text.plain[self._num_characters :]), end="", soft_wrap=True)
            self._num_characters = len(text)

    def finish(self, text: Text, caption: Text) -> None:
        """Show a finished text with its credit, and a line below it."""
        console = _console()
        if console.is_terminal:
            self._draw(console, text.copy().append("\n").append(caption), most_lines=None)
        else:
            console.print()
            console.print(text, caption, sep="\n", soft_wrap=True)

    def _draw(self, console: Console, text: Text, most_lines: int | None) -> None:
        """Draw a text over the last one; while it grows, no more of it than can be drawn over."""
        wait = self._seconds - (time.monotonic() - self._shown_at)
        if self._num_lines and wait > 0:
            time.sleep(wait)
        self._shown_at = time.monotonic()
        lines = text.wrap(console, console.width)
        shown = lines if most_lines is None else lines[-most_lines:]
        if self._num_lines:
            console.file.write(f"\x1b[{self._num_lines}A\r\x1b[J")  # up, and clear below
        for line in shown:
            console.print(line, no_wrap=True, overflow="crop")
        self._num_lines = len(shown)


def _console() -> Console:
    # Made anew each time: standard output may have been redirected meanwhile.
    return Console(highlight=False)
