"""A suite's report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from textgym.rendering import credit_html
from textgym.rendering import make_page as page_of
from textgym.samples import Sample

__all__ = ["make_page"]

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
    return page_of(question, "\n".join(parts))


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
                parts.append(f'<div class="sample">{credit_html(prompt, [completion])}</div>')
    return "\n".join(parts)


def _samples(runs: pd.DataFrame) -> str:
    parts = ["<h2>Completions at the end of the runs</h2>"]
    parts.append(
        "<p>The score, then the text. Blue: positive credit; vermilion and underlined: negative; "
        "the full colour is the largest credit of that text. Hover over a token for its credit. "
        "The prompt is pale.</p>"
    )
    ends = runs.dropna(subset=["samples"])
    for (task, method), rows in ends.groupby(["task", "method"], sort=False):
        parts.append(f"<h3>{html.escape(f'{task}, {method}')}</h3>")
        for sample in json.loads(rows["samples"].iloc[0]):
            parts.append(Sample(**sample).to_html())
    return "\n".join(parts) if len(ends) else ""
