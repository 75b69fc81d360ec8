"""The page about training runs: curves, score against KL, settings, completions."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from textgym.cli.run_data import RunData, RunGroup, differences, shown
from textgym.cli.samples_file import KeptSample
from textgym.plotting import draw_curves, draw_frontier, new_figure, to_svg
from textgym.rendering import credit_html, credit_limit, make_page
from textgym.rendering.html import scale_bar
from textgym.rendering.terminal import short_number, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["report_page"]

_WINDOW = 5
"""Iterations of the trailing means."""
_ENDS = 10
"""Iterations that the first and the last score are means of."""
_NUM_POINTS = 4
"""Points of training at which completions are shown."""
_PANELS = {
    "mean score": lambda run: run.scores,
    "KL (nats per episode)": lambda run: run.kl,
    "entropy (nats per token)": lambda run: run.values("train/entropy"),
    "length (tokens)": lambda run: run.values("rollout/episode_length"),
    "policy loss": lambda run: run.values("train/policy_loss"),
    "value loss": lambda run: run.values("train/value_loss"),
    "weight of the KL penalty": lambda run: run.values("train/kl_coef"),
    "seconds per iteration": lambda run: np.diff(run.values("time/seconds"), prepend=0.0).tolist(),
}
"""What is drawn against iterations; a panel that no run has values for is left out."""
_STYLE = """
tr.differs td, tr.differs th { background: color-mix(in srgb, #e69f00 22%, transparent) }
.samples { width: 100%; table-layout: fixed } .samples .number { width: 5.5rem }
"""


def report_page(groups: Sequence[RunGroup]) -> str:
    """Make the page.

    Args:
        groups: At most :data:`textgym.plotting.MOST_LINES`, with one run or more each.
    """
    num_runs = sum(len(group.runs) for group in groups)
    title = groups[0].runs[0].folder.name if num_runs == 1 else f"{num_runs} training runs"
    body = [f"<h1>{html.escape(title)}</h1>", "<h2>Results</h2>", _results(groups)]
    if any(run.rows for group in groups for run in group.runs):
        body += ["<h2>Curves</h2>", _curves(groups), "<h2>Score against KL</h2>", _frontier(groups)]
    body += ["<h2>Settings</h2>", _settings(groups)]
    body += ["<h2>Completions through training</h2>", *_samples(groups)]
    return make_page(title, "\n".join(body), style=_STYLE)


def _results(groups: Sequence[RunGroup]) -> str:
    """A row per run: how far it is, and what it has reached."""
    heads = ["run", "seed", "iterations", "checkpoint", "tokens", "time"]
    heads += ["score, first", "score, last", "KL"]
    rows = []
    for group in groups:
        for run in group.runs:
            name = f"{group.name}: {run.folder.name}" if len(groups) > 1 else run.folder.name
            rows.append([name, shown(run.settings.get("seed")), *_reached(run)])
    note = f"Scores and KL are means over the first and the last {_ENDS} iterations."
    numbers = range(1, len(heads))
    return f'{_table(heads, rows, numbers)}<p class="soft">{note}</p>'


def _reached(run: RunData) -> list[str]:
    checkpoint = "–" if run.checkpoint is None else str(run.checkpoint)
    if not run.rows:
        return ["0", checkpoint, "0", "–", "–", "–", "–"]
    last = run.rows[-1]
    tokens = f"{last['time/total_timesteps']:,.0f}"
    if (total := run.settings.get("total_timesteps")) is not None:
        tokens += f" of {total:,}"
    alarm = next((n for n, row in enumerate(run.rows, 1) if row.get("train/alarm")), None)
    return [
        str(len(run.rows)) + (f" (alarm at {alarm})" if alarm else ""),
        checkpoint,
        tokens,
        _duration(last["time/seconds"]),
        f"{fmean(run.scores[:_ENDS]):+.2f}",
        f"{fmean(run.scores[-_ENDS:]):+.2f}",
        f"{fmean(run.kl[-_ENDS:]):.1f}" if run.kl else "–",
    ]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _window(groups: Sequence[RunGroup]) -> int:
    """Iterations in the trailing means: fewer if a run is so short that little would be left."""
    lengths = (len(run.scores) for group in groups for run in group.runs if run.rows)
    shortest = min(lengths, default=0)
    return max(1, min(_WINDOW, shortest // 4))


def _means(window: int) -> str:
    return "single iterations" if window == 1 else f"means of the last {window} iterations"


def _curves(groups: Sequence[RunGroup]) -> str:
    window = _window(groups)
    values = {
        label: {group.name: [metric(run) for run in group.runs] for group in groups}
        for label, metric in _PANELS.items()
    }
    found = {
        label: of_groups
        for label, of_groups in values.items()
        if any(any(runs) for runs in of_groups.values())
    }
    columns = min(len(found), 4)
    num_rows = -(-len(found) // columns)
    figure = new_figure(4.2 * columns, 3.3 * num_rows)
    panels = figure.subplots(num_rows, columns, squeeze=False).flat
    for axes, (label, of_groups) in zip(panels, found.items(), strict=False):
        draw_curves(axes, of_groups, label, window)
    for axes in list(panels)[len(found) :]:
        axes.set_visible(False)
    _add_legend(figure, groups)
    several = any(len(group.runs) > 1 for group in groups)
    note = f"Strong lines: {_means(window)}; faint: single iterations."
    if window == 1:
        note = "Lines: single iterations."
    if several:
        note += (
            " Of runs that differ in their seeds only: strong, their mean, as far as all of them "
            "have come; faint, every run; the band, the 95% interval of the mean by Student's t."
        )
    return _picture(figure, "Curves of " + ", ".join(found)) + f'<p class="soft">{note}</p>'


def _frontier(groups: Sequence[RunGroup]) -> str:
    figure = new_figure(7.5, 4.6)
    lines = {g.name: [(run.kl, run.scores) for run in g.runs if run.kl] for g in groups}
    draw_frontier(figure.subplots(), lines, _window(groups))
    _add_legend(figure, groups)
    note = (
        "What a run has gained at each distance from the reference policy: higher at equal KL is "
        f"better. Drawn: {_means(_window(groups))}; a dot is the end of a run."
    )
    return _picture(figure, "Score against KL") + f'<p class="soft">{note}</p>'


def _add_legend(figure: Figure, groups: Sequence[RunGroup]) -> None:
    if len(groups) > 1 or len(groups[0].runs) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", frameon=False, ncols=4)


def _picture(figure: Figure, alt: str) -> str:
    data = base64.b64encode(to_svg(figure).encode()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def _settings(groups: Sequence[RunGroup]) -> str:
    """All settings, a column per group; where groups differ first, and marked."""
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    differing = differences(groups)
    same = [name for name in names if name not in differing]
    heads = ["setting", *(group.name for group in groups)]

    def rows(of: Iterable[str]) -> list[list[str]]:
        return [[name, *(shown(g.settings.get(name, "–")) for g in groups)] for name in of]

    parts = []
    if differing:
        parts.append(_table(heads, rows(differing), mark="differs"))
    parts.append(
        f"<details{'' if differing else ' open'}><summary>{len(same)} settings"
        f"{' that all runs share' if len(groups) > 1 else ''}</summary>"
        f"{_table(['setting', 'value'], [row[:2] for row in rows(same)])}</details>"
    )
    return "".join(parts)


def _samples(groups: Sequence[RunGroup]) -> list[str]:
    """What the first run of each group wrote after the same prompts, from the start to now."""
    parts = [
        '<p class="soft">The same prompts with the same random numbers, at several iterations. '
        f"Credit −x {scale_bar()} +x: x is the largest credit of the text; negative credit is "
        "underlined. Hover over a token for its credit.</p>"
    ]
    for group in groups:
        run = next((run for run in group.runs if run.samples), None)
        if run is None:
            parts.append(f"<p>{html.escape(group.name)}: the run has kept no samples.</p>")
            continue
        if len(groups) > 1 or len(group.runs) > 1:
            parts.append(f"<h3>{html.escape(f'{group.name}: {run.folder.name}')}</h3>")
        points = _spread(sorted({kept.iteration for kept in run.samples}), _NUM_POINTS)
        rows = [kept for kept in run.samples if kept.iteration in points]
        by_prompt: dict[tuple[int, ...], list[KeptSample]] = {}
        for kept in rows:
            by_prompt.setdefault(tuple(kept.prompt_ids), []).append(kept)
        for of_prompt in by_prompt.values():
            parts.append(_sample_table(of_prompt))
    return parts


def _sample_table(kept: Sequence[KeptSample]) -> str:
    cells = []
    for one in kept:
        sample = one.sample
        limit = credit_limit(sample.credit)
        cells.append(
            f'<tr><th scope="row" class="number">{one.iteration}</th>'
            f'<td class="number">{sample.score:+.2f}</td>'
            f"<td>{credit_html(sample.prompt, sample.pieces, sample.credit)}</td>"
            f'<td class="number">{short_number(limit) if limit else 0}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col"{number}>{head}</th>'
        for head, number in (
            ("iteration", ' class="number"'),
            ("score", ' class="number"'),
            ("completion", ""),
            ("x", ' class="number"'),
        )
    )
    body = "".join(cells)
    return f'<table class="samples"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _spread(values: Sequence[int], number: int) -> set[int]:
    """At most so many values, the first and the last among them, and about evenly spread."""
    at = np.linspace(0, len(values) - 1, min(number, len(values))).round().astype(int)
    return {values[i] for i in at}


def _table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Iterable[int] = (),
    mark: str = "",
) -> str:
    numbers = set(numbers)

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if column in numbers else ""
        scope = {"th": ' scope="row"', "head": ' scope="col"'}.get(tag, "")
        name = "td" if tag == "td" else "th"
        return f"<{name}{scope}{kind}>{html.escape(visible(text))}</{name}>"

    head = "".join(cell("head", n, text) for n, text in enumerate(heads))
    opening = f'<tr class="{mark}">' if mark else "<tr>"
    body = "".join(
        opening
        + "".join(cell("td" if n else "th", n, text) for n, text in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
