"""Text with its credit: for terminals, and as pixels for videos."""

from textgym.rendering.frames import draw_frame, frame_lines
from textgym.rendering.terminal import credit_text, to_ansi, token_pieces, visible

__all__ = ["credit_text", "draw_frame", "frame_lines", "to_ansi", "token_pieces", "visible"]
