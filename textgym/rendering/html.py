"""Text with its credit, in HTML: pieces of pages, and pages that need no other file.

Everything that a text or a name contains is escaped. Letters have the colour of the page around
them, so that pieces fit into dark pages, white pages and notebooks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from textgym.rendering.scale import (
    FULL_OPACITY,
    NEGATIVE,
    POSITIVE,
    credit_colour,
    credit_limit,
    is_marked,
)
from textgym.rendering.terminal import short_number, visible

__all__ = [
    "PAGE_STYLE",
    "TEXT_STYLE",
    "Fragment",
    "credit_html",
    "episode_html",
    "json_block",
    "legend_html",
    "make_page",
    "scale_bar",
]

TEXT_STYLE = """
.textgym-text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.textgym-text span { border-radius: .15em; padding: .1em 0 }
.textgym-text .prompt, .textgym-legend { opacity: .75 }
.textgym-text .negative { text-decoration: underline; text-underline-offset: .2em;
  text-decoration-color: color-mix(in srgb, currentColor 50%, transparent) }
.textgym-score { font-weight: 600; margin-right: 1em }
.textgym-legend { font-size: .85em }
.textgym-bar { display: inline-block; width: 9em; height: .8em; margin: 0 .4em;
  border-radius: .2em; vertical-align: baseline }
"""
"""What the pieces of this module look like; part of :data:`PAGE_STYLE`."""

PAGE_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1c1c1e; --ground: #fff; --line: #d4d4d8; --soft: #52525b;
  --panel: #f4f4f5; --link: #0b5cad }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --ground: #18181b; --line: #3f3f46;
  --soft: #a1a1aa; --panel: #27272a; --link: #7cb7f5 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--ground) }
a { color: var(--link) }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem } h3 { font-size: 1rem }
img { max-width: 100%; background: #fff; border-radius: 6px }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left;
  vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.soft { color: var(--soft) }
.sample { margin: .5rem 0 }
"""
    + TEXT_STYLE
)
"""The look of whole pages, dark where the reader's system is."""


class Fragment(str):
    """A piece of HTML; notebooks show it as such."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def credit_html(
    prompt: str,
    pieces: Sequence[str],
    credit: Sequence[float] | None = None,
    limit: float | None = None,
) -> str:
    """A prompt and the tokens of its completion, coloured by their credit.

    Hovering over a token shows it, its credit, and its share: its absolute credit over the sum of
    all absolute credits.

    Args:
        prompt: The prompt, shown dim.
        pieces: The text of each token.
        credit: One number per token; None for no colours.
        limit: The absolute credit that gets the full colour; the largest one by default.

    Returns:
        A ``<div>``, in it a ``<span>`` for the prompt, if there is one, and for each credit.
    """
    parts = [f'<span class="prompt">{_escaped(prompt)}</span>'] if prompt else []
    if credit is None:
        parts += map(_escaped, pieces)
    else:
        limit = credit_limit(credit) if limit is None else limit
        total = sum(abs(value) for value in credit)
        for piece, value in zip(pieces, credit, strict=True):
            parts.append(_token(piece, value, limit, abs(value) / total if total else 0.0))
    return f'<div class="textgym-text">{"".join(parts)}</div>'


def _token(piece: str, value: float, limit: float, share: float) -> str:
    (red, green, blue), opacity = credit_colour(value, limit)
    mark = ' class="negative"' if is_marked(value, limit) else ""
    title = f'"{visible(piece, newlines=True)}" credit {value:+.4f}, share {share:.0%}'
    return (
        f'<span{mark} style="background:rgba({red},{green},{blue},{opacity:.3g})" '
        f'title="{html.escape(title)}">{_escaped(piece)}</span>'
    )


def legend_html(limit: float, what: str = "the largest credit of a token") -> str:
    """The scale in numbers, from -limit to +limit.

    Args:
        limit: The absolute credit that has the full colour.
        what: What the limit is.
    """
    if limit <= 0:
        return '<span class="textgym-legend">no credit</span>'
    number = short_number(limit)
    return (
        f'<span class="textgym-legend">credit −{number}{scale_bar()}'
        f"+{number} ({html.escape(what)}; negative is underlined)</span>"
    )


def scale_bar() -> str:
    """The colours of the scale, from the most negative to the most positive."""
    ends = [f"rgba({','.join(map(str, rgb))},{FULL_OPACITY})" for rgb in (NEGATIVE, POSITIVE)]
    colours = f"background:linear-gradient(to right,{ends[0]},transparent,{ends[1]})"
    return f'<span class="textgym-bar" style="{colours}"></span>'


def episode_html(
    prompt: str,
    pieces: Sequence[str],
    credit: Sequence[float] | None = None,
    score: float | None = None,
) -> Fragment:
    """An episode as a fragment with its style; with credit, score and legend once it has ended.

    Args:
        prompt: The prompt.
        pieces: The text of each token so far.
        credit: One number per token; None while the episode is under way.
        score: The score; None while the episode is under way.
    """
    parts = [f"<style>{TEXT_STYLE}</style>", credit_html(prompt, pieces, credit)]
    if score is not None:
        legend = "" if credit is None else legend_html(credit_limit(credit))
        parts.append(f'<div><span class="textgym-score">score {score:+.2f}</span>{legend}</div>')
    return Fragment(f'<div class="textgym-episode">{"".join(parts)}</div>')


def make_page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A page that loads nothing.

    Args:
        title: Its title, plain text.
        body: HTML.
        style: CSS besides :data:`PAGE_STYLE`.
        script: JavaScript that runs at the end of the page.
    """
    script = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{PAGE_STYLE}{style}</style></head>\n"
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )


def json_block(name: str, value: Any) -> str:
    """A value for the script of a page, which finds it by its id."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Text in a page must not end the element, or begin a comment, that it is in.
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'


def _escaped(text: str) -> str:
    return html.escape(visible(text))
