"""Text with its credit: for terminals, as pixels for videos, and as HTML."""

from textgym.rendering.explorer import CreditedText, explorer_page
from textgym.rendering.frames import FRAME_GROUND, draw_frame, frame_lines
from textgym.rendering.html import credit_html, episode_html, legend_html, make_page
from textgym.rendering.live import LiveText
from textgym.rendering.scale import credit_colour, credit_limit
from textgym.rendering.terminal import (
    caption_text,
    credit_text,
    legend_text,
    to_ansi,
    token_pieces,
    visible,
)

__all__ = [
    "FRAME_GROUND",
    "CreditedText",
    "LiveText",
    "caption_text",
    "credit_colour",
    "credit_html",
    "credit_limit",
    "credit_text",
    "draw_frame",
    "episode_html",
    "explorer_page",
    "frame_lines",
    "legend_html",
    "legend_text",
    "make_page",
    "to_ansi",
    "token_pieces",
    "visible",
]
