"""The colour of credit: one scale for terminals, pixels and web pages.

Positive credit is blue and negative credit is vermilion, two hues that people with any kind of
colour vision tell apart. The scale is symmetric around 0: opacity grows linearly with the absolute
credit, up to a limit that legends state. So weak credit fades into what lies behind it, whether
that is dark or white, and the letters on top keep the colour that they would have without credit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "FULL_OPACITY",
    "MARKED_SHARE",
    "NEGATIVE",
    "POSITIVE",
    "RGB",
    "Colour",
    "credit_colour",
    "credit_limit",
    "is_marked",
]

RGB = tuple[int, int, int]
"""Red, green and blue, from 0 to 255."""

POSITIVE: RGB = (0, 102, 204)
NEGATIVE: RGB = (196, 60, 0)
FULL_OPACITY = 0.75
"""Opacity at the limit of the scale. Dark letters stay readable over white, and light ones over a
dark ground: their contrast is 4.5 or more, as WCAG 2.1 asks for at level AA."""
MARKED_SHARE = 0.1
"""Share of the limit from which negative credit is underlined."""


class Colour(NamedTuple):
    """A colour that lets its ground shine through.

    Attributes:
        rgb: Red, green and blue, from 0 to 255.
        opacity: From 0, invisible, to 1.
    """

    rgb: RGB
    opacity: float

    def over(self, ground: RGB) -> RGB:
        """What the colour looks like on an opaque ground."""
        red, green, blue = (
            round(below + self.opacity * (own - below))
            for own, below in zip(self.rgb, ground, strict=True)
        )
        return red, green, blue


def credit_colour(credit: float, limit: float) -> Colour:
    """The colour of one token's credit.

    Args:
        credit: The credit, finite.
        limit: The absolute credit that gets the strongest colour; beyond it nothing changes.

    Returns:
        Blue for positive credit, vermilion for negative; invisible if credit or limit is 0.

    >>> credit_colour(-0.5, 1.0)
    Colour(rgb=(196, 60, 0), opacity=0.375)
    """
    strength = min(abs(credit) / limit, 1.0) if limit > 0 else 0.0
    return Colour(NEGATIVE if credit < 0 else POSITIVE, FULL_OPACITY * strength)


def is_marked(credit: float, limit: float) -> bool:
    """Whether a token is underlined: negative credit, unless it is too weak to be seen.

    The line tells the sign to readers who cannot see colours, or have switched them off.

    Args:
        credit: The credit.
        limit: As in :func:`credit_colour`.
    """
    return credit < 0 and -credit >= MARKED_SHARE * limit


def credit_limit(credit: Iterable[float]) -> float:
    """The largest absolute credit, where the scale of a text ends; 0 without credit."""
    return max((abs(value) for value in credit), default=0.0)
