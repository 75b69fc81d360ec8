"""Text with its credit, for terminals."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.style import Style
from rich.text import Text

__all__ = ["credit_text", "to_ansi"]

_POSITIVE, _NEGATIVE = (0, 128, 0), (176, 0, 32)
# An agent may write any byte: control characters are shown as pictures, not sent to the terminal.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) != "\n"} | {0x7F: 0x2421}


def credit_text(
    prompt: str,
    pieces: Sequence[str],
    credit: Sequence[float] | None = None,
    scale: float | None = None,
) -> Text:
    """Lay out a prompt and the tokens of its completion, coloured by their credit.

    Green stands for positive credit and red for negative; the deeper the colour, the larger the
    credit.

    Args:
        prompt: The prompt, shown dim.
        pieces: The text of each token.
        credit: One number per token; None for no colours.
        scale: The absolute credit that gets the full colour; the largest one by default.

    Returns:
        A rich text, which any rich console prints.
    """
    text = Text(prompt.translate(_VISIBLE), style="dim")
    pieces = [piece.translate(_VISIBLE) for piece in pieces]
    if credit is None:
        return text.append("".join(pieces), style="not dim")
    largest = max((abs(value) for value in credit), default=0.0) if scale is None else scale
    for piece, value in zip(pieces, credit, strict=True):
        strength = min(abs(value) / largest, 1.0) if largest > 0 else 0.0
        red, green, blue = (int(strength * c) for c in (_POSITIVE if value > 0 else _NEGATIVE))
        style = Style(bgcolor=f"rgb({red},{green},{blue})", color="white") if strength else None
        text.append(piece, style=Style(dim=False) + style if style else "not dim")
    return text


def to_ansi(text: Text) -> str:
    """Turn a rich text into a string with ANSI colour codes."""
    buffer = io.StringIO()
    console = Console(
        file=buffer, force_terminal=True, color_system="truecolor", width=10_000, legacy_windows=False
    )
    console.print(text, end="", soft_wrap=True, highlight=False)
    return buffer.getvalue()
