"""Text with its credit, for terminals."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["credit_text", "to_ansi", "token_pieces", "visible"]

# Weak credit is grey, strong credit is green or red, all of about the same brightness, so that
# white letters can be read on it whether the terminal itself is dark or light.
_NEUTRAL, _POSITIVE, _NEGATIVE = (96, 96, 96), (0, 128, 0), (192, 0, 32)
# An agent may write any byte. Control characters appear as pictures and never reach the terminal.
# The last range holds the 8-bit control sequences, for which Unicode has no pictures.
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) != "\n"},
    0x7F: "\u2421",
    **{code: "\ufffd" for code in range(0x80, 0xA0)},
}


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """The text of each token by itself, special tokens shown.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids.
    """
    return [str(tokenizer.decode([i])) for i in ids]


def visible(text: str, newlines: bool = False) -> str:
    r"""Replace control characters by pictures of them.

    Args:
        text: Any text.
        newlines: Whether to replace line ends too, for text that must stay on one line.

    >>> visible("a\x1b[2J\n")
    'a␛[2J\n'
    """
    shown = text.translate(_VISIBLE)
    return shown.replace("\n", "\u240a") if newlines else shown


def credit_text(
    prompt: str,
    pieces: Sequence[str],
    credit: Sequence[float] | None = None,
    scale: float | None = None,
) -> Text:
    """Lay out a prompt and the tokens of its completion, coloured by their credit.

    Green stands for positive credit, red and underlined for negative; the purer the colour, the
    larger the credit. Tokens without credit stay plain.

    Args:
        prompt: The prompt, shown dim.
        pieces: The text of each token.
        credit: One number per token; None for no colours.
        scale: The absolute credit that gets the full colour; the largest one by default.

    Returns:
        A rich text, which any rich console prints.
    """
    text = Text().append(visible(prompt), style="dim")
    if credit is None:
        return text.append("".join(map(visible, pieces)))
    largest = max((abs(value) for value in credit), default=0.0) if scale is None else scale
    for piece, value in zip(pieces, credit, strict=True):
        strength = min(abs(value) / largest, 1.0) if largest > 0 else 0.0
        text.append(visible(piece), style=_style(strength, value < 0))
    return text


def _style(strength: float, is_negative: bool) -> Style:
    if strength == 0:
        return Style()
    full = _NEGATIVE if is_negative else _POSITIVE
    red, green, blue = (round(n + strength * (f - n)) for n, f in zip(_NEUTRAL, full, strict=True))
    # The underline marks the sign for readers who cannot see colours or have switched them off.
    return Style(
        bgcolor=f"rgb({red},{green},{blue})",
        color="rgb(255,255,255)",
        underline=is_negative or None,
    )


def to_ansi(text: Text) -> str:
    """Turn a rich text into a string with ANSI colour codes."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=True,
        color_system="truecolor",
        width=10_000,
        legacy_windows=False,
    )
    console.print(text, end="", soft_wrap=True, highlight=False)
    return buffer.getvalue()
