"""Text with its credit, for terminals."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.style import Style
from rich.text import Text

from textgym.rendering.scale import RGB, credit_colour, credit_limit, is_marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TERMINAL_GROUND",
    "caption_text",
    "credit_text",
    "legend_text",
    "short_number",
    "to_ansi",
    "token_pieces",
    "visible",
]

# A terminal does not tell whether it is dark or light. On this grey, all colours of the scale are
# about equally bright, and white letters can be read on them in either.
TERMINAL_GROUND: RGB = (96, 96, 96)
_LEGEND_CELLS = 11  # odd, so that one is 0
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
    limit: float | None = None,
    ground: RGB = TERMINAL_GROUND,
) -> Text:
    """Lay out a prompt and the tokens of its completion, coloured by their credit.

    Negative credit is underlined, unless it is weak, for readers who cannot see colours. Tokens
    without credit stay plain.

    Args:
        prompt: The prompt, shown dim.
        pieces: The text of each token.
        credit: One number per token; None for no colours.
        limit: The absolute credit that gets the full colour; the largest one by default.
        ground: What weak credit fades into.

    Returns:
        A rich text, which any rich console prints.
    """
    text = Text().append(visible(prompt), style="dim")
    if credit is None:
        return text.append("".join(map(visible, pieces)))
    limit = credit_limit(credit) if limit is None else limit
    for piece, value in zip(pieces, credit, strict=True):
        text.append(visible(piece), style=_style(value, limit, ground))
    return text


def legend_text(limit: float, ground: RGB = TERMINAL_GROUND, what: str = "largest") -> Text:
    """The scale in numbers, such as ``credit -0.26 ▒▒▒▒▒ +0.26 (largest)``.

    Args:
        limit: The absolute credit that has the full colour.
        ground: As in :func:`credit_text`.
        what: What the limit is.
    """
    if limit <= 0:
        return Text("no credit", style="dim")
    number = short_number(limit)
    text = Text(f"credit -{number} ")
    for cell in range(_LEGEND_CELLS):
        value = limit * (2 * cell / (_LEGEND_CELLS - 1) - 1)
        text.append(" ", style=_style(value, limit, ground))
    return text.append(f" +{number} ({what})")


def caption_text(
    score: float, credit: Sequence[float] | None, ground: RGB = TERMINAL_GROUND
) -> Text:
    """The last line of a finished episode: the score, and the legend of its credit."""
    text = Text(f"score {score:+.2f}")
    return (
        text
        if credit is None
        else text.append("   ").append(legend_text(credit_limit(credit), ground))
    )


def short_number(number: float) -> str:
    """A number above 0 with two decimals, or with two digits if it is small.

    >>> short_number(1.234), short_number(0.00123)
    ('1.23', '0.0012')
    """
    return f"{number:.2f}" if number >= 0.095 else f"{number:.2g}"


def _style(value: float, limit: float, ground: RGB) -> Style:
    colour = credit_colour(value, limit)
    if colour.opacity == 0:
        return Style()
    red, green, blue = colour.over(ground)
    return Style(
        bgcolor=f"rgb({red},{green},{blue})",
        color="rgb(255,255,255)",
        underline=is_marked(value, limit) or None,
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
