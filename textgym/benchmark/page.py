"""A suite's report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from textgym.samples import Sample

__all__ = ["make_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .7rem; text-align: left }
.sample { font-family: ui-monospace, monospace; margin: .3rem 0; white-space: pre-wrap }
.sample .prompt { color: #666 }
.sample .score { color: #222; font-weight: 600 }
"""
_POSITIVE, _NEGATIVE = "26, 133, 255", "212, 17, 89"
"""Blue and red that people with any kind of colour vision can tell apart."""
_NUM_TEXTS = 4
"""Completions shown of a run at a point of its training."""


def make_page(runs: pd.DataFrame, tables: str, figures: Mapping[str, Path], question: str) -> str:
    """The page.

    Args:
        runs: Rows of all runs; ``samples`` holds completions as JSON.
        tables: Markdown, as the report makes it: headings, tables and paragraphs.
        figures: Picture files by title.
        question: The heading.
    """
    parts = [f"<h1>{html.escape(question)}</h1>"]
    for title, path in figures.items():
        picture = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(title)
        parts.append(f'<img alt="{alt}" src="data:image/png;base64,{picture}">')
    parts.append(MarkdownIt("commonmark", {"html": False}).enable("table").render(tables))
    parts.append(_through_training(runs))
    parts.append(_samples(runs))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{html.escape(question)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _through_training(runs: pd.DataFrame) -> str:
    """The first run of each method: what it writes after the same prompts at several KL."""
    if "fresh_texts" not in runs or runs["fresh_texts"].isna().all():
        return ""
    parts = ["<h2>The same prompts through training</h2>"]
    measured = runs.dropna(subset=["fresh_texts"])
    for (task, method), rows in measured.groupby(["task", "method"], sort=False):
        parts.append(f"<h3>{html.escape(f'{task}, {method}')}</h3>")
        for _, row in rows[rows["seed"] == rows["seed"].min()].iterrows():
            gold = row.get("fresh_gold", float("nan"))
            judged = "" if pd.isna(gold) else f", gold {gold:+.2f}"
            parts.append(
                f"<p>iteration {row['iteration']}: KL {row['fresh_kl']:.0f}, "
                f"score {row['fresh_score']:+.2f}{judged}</p>"
            )
            for prompt, completion in json.loads(row["fresh_texts"])[:_NUM_TEXTS]:
                parts.append(
                    f'<div class="sample"><span class="prompt">{html.escape(prompt)}</span>'
                    f"{html.escape(completion)}</div>"
                )
    return "\n".join(parts)


def _samples(runs: pd.DataFrame) -> str:
    parts = ["<h2>Completions at the end of the runs</h2>"]
    parts.append(
        "<p>Blue: positive credit; red: negative; the stronger the colour, the more. Hover over a "
        "token for its credit. The prompt is grey.</p>"
    )
    ends = runs.dropna(subset=["samples"])
    for (task, method), rows in ends.groupby(["task", "method"], sort=False):
        parts.append(f"<h3>{html.escape(f'{task}, {method}')}</h3>")
        for sample in json.loads(rows["samples"].iloc[0]):
            parts.append(_sample(Sample(**sample)))
    return "\n".join(parts) if len(ends) else ""


def _sample(sample: Sample) -> str:
    largest = max((abs(value) for value in sample.credit), default=0.0) or 1.0
    tokens = []
    for piece, value in zip(sample.pieces, sample.credit, strict=True):
        color = _POSITIVE if value >= 0 else _NEGATIVE
        style = f"background: rgba({color}, {0.7 * abs(value) / largest:.2f})"
        tokens.append(f'<span style="{style}" title="{value:+.3f}">{html.escape(piece)}</span>')
    return (
        f'<div class="sample"><span class="score">{sample.score:+.2f}</span> '
        f'<span class="prompt">{html.escape(sample.prompt)}</span>{"".join(tokens)}</div>'
    )
