"""The tables and figures of a suite, made from the rows of its runs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from textgym.errors import InvalidArgumentError

from .comparison import compare
from .curves import label_panels, new_figure, save
from .frontier import draw_frontier, ends_of_families, frontier_tables
from .gold import judge, left_to_judge
from .lengths import draw_lengths
from .measures import ENDS, WINDOW, best_score, measure_run, score_at_kl
from .methods import METHODS
from .plan import TASKS, Suite
from .runner import duration
from .statistics import stratified_bootstrap
from .storage import only_writer, read_rows, write_rows
from .tables import markdown_table

__all__ = ["draw", "fresh_table", "make_tables", "measure_all", "write_report"]

_FRESH = {
    "fresh_score": ("score", "+.2f"),
    "fresh_gold": ("gold", "+.2f"),
    "fresh_outside": ("outside scorer", "+.2f"),
    "fresh_kl": ("KL", ".1f"),
    "fresh_distinct_2": ("distinct-2", ".2f"),
    "fresh_length": ("tokens", ".1f"),
}
"""By column, what tables call it and how they show it."""
_DASHES = ("-", "--", ":", "-.")
"""Of the first, the second, ... method that is drawn in one colour."""


def write_report(folder: Path, suite: Suite) -> str:
    """Write ``table.md``, a figure per task and ``report.html``; returns the tables.

    Args:
        folder: Has ``runs.parquet``.
        suite: Says which runs belong together, and what they are compared with.

    Raises:
        InvalidArgumentError: If there are no runs on the suite's tasks, or none with a method of
            it, or texts are left to judge while another process is writing to the folder.
    """
    from .page import make_page  # Imported here: it imports this module's tables.

    runs = _judged_rows(folder / "runs.parquet")
    runs = runs[runs["task"].isin(suite.tasks)] if len(runs) else runs
    if not len(runs):
        raise InvalidArgumentError(
            "folder", str(folder), "has no runs of the suite; textgym benchmark run makes them"
        )
    present = runs["method"].unique()
    if not set(present) & set(suite.methods):
        raise InvalidArgumentError(
            "folder",
            str(folder),
            f"has runs of {'; '.join(present)}, and this suite has other methods: name the suite "
            "that they are of, or the file that registers them (--methods)",
        )
    order = {method: n for n, method in enumerate(_in_order(present, suite))}
    runs = runs.sort_values("method", key=lambda names: names.map(order), kind="stable")
    measured = measure_all(runs, suite.baseline)
    text = make_tables(runs, measured, suite)
    figures = {}
    if draw_lengths(measured, suite.baseline, folder / "lengths.png"):
        figures["Iterations needed, by length"] = folder / "lengths.png"
    for task in _tasks(runs, suite):
        of_task = runs[runs["task"] == task]
        ends = ends_of_families(of_task)
        if len(ends):
            figures[f"Score at equal KL on {task}"] = folder / f"frontier_{task}.png"
            draw_frontier(ends, folder / f"frontier_{task}.png")
            tables = frontier_tables(ends)
            text += "\n".join(["", f"# {task}: at equal KL, at the end of the runs", "", *tables])
        figures[f"Learning curves on {task}"] = folder / f"curves_{task}.png"
        draw(of_task, task, folder / f"curves_{task}.png")
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(
        make_page(runs, text, figures, suite.question), encoding="utf-8"
    )
    return text


def measure_all(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Measures of all runs, a row each; see :func:`textgym.benchmark.measures.measure_run`.

    The goal of a run is the best score of the baseline under the same seed. ``share`` is the number
    of iterations until then over that of the baseline. A run that does not get there counts with
    all of its iterations, so its share is then too low.
    """
    rows = []
    for task, of_task in runs.groupby("task", sort=False):
        goals = {
            seed: best_score(run)
            for seed, run in of_task[of_task["method"] == baseline].groupby("seed")
        }
        for (method, seed), run in of_task.groupby(["method", "seed"], sort=False):
            goal = goals.get(seed, float("inf"))
            measures = measure_run(run, TASKS[str(task)].kl_budget, goal)
            length = float(run["iteration"].max())
            rows.append({"task": task, "method": method, "seed": seed, "length": length} | measures)
    measured = pd.DataFrame(rows)
    of_baseline = measured[measured["method"] == baseline][["task", "seed", "iterations"]]
    measured = measured.merge(
        of_baseline.rename(columns={"iterations": "of_baseline"}), how="left", on=["task", "seed"]
    )
    reached = measured["iterations"].fillna(measured["length"])
    measured["share"] = reached / measured["of_baseline"]
    return measured.drop(columns="of_baseline")


def make_tables(runs: pd.DataFrame, measured: pd.DataFrame, suite: Suite) -> str:
    """All tables in Markdown, a section per task."""
    text = [suite.question]
    for task in _tasks(runs, suite):
        of_task = measured[measured["task"] == task]
        order = _in_order(of_task["method"].unique(), suite)
        by_method = {m: of_task[of_task["method"] == m].set_index("seed") for m in order}
        seconds = runs[runs["task"] == task].groupby(["method", "seed"])["seconds"].max()
        took = (
            f"{len(seconds)} runs of {of_task['length'].max():.0f} iterations. Training them took "
            f"{duration(seconds.sum())} of one core, without the fresh completions."
        )
        text += ["", f"# {task}", "", took, ""]
        budget = TASKS[task].kl_budget
        for title, column in (
            (f"Area under the score curve, at a KL budget of {budget:.0f} nats", "area"),
            (f"Score at the end: mean over the last {ENDS} iterations", "final"),
        ):
            values = {method: rows[column] for method, rows in by_method.items()}
            text += [f"## {title}", ""]
            if suite.baseline in values:
                text += compare(values, suite.baseline)
            else:
                text += [f"The baseline, {suite.baseline}, has not run yet."]
            text += [""]
        text += ["## Stability", "", *_stability(by_method), ""]
        text += ["## Score where the KL first reaches a value, in nats", ""]
        text += [*_at_equal_kl(runs[runs["task"] == task], order, budget), ""]
        text += [f"## To the best score of {suite.baseline}", "", *_speed(by_method), ""]
        text += ["## Fresh completions", ""]
        if "fresh_score" in runs:
            rows = runs[runs["task"] == task]
            text += fresh_table({method: rows[rows["method"] == method] for method in order})
        else:
            text += ["None were measured."]
    text += [
        "",
        "score: interquartile mean over seeds; in brackets, its 95% interval by the stratified "
        "bootstrap, which is too narrow with few seeds. minus: mean difference under equal seeds, "
        "with the 95% interval of a paired t-test, and its p after Holm's correction for all rows. "
        "At equal KL: means over the runs that reach it; in brackets their number, if not all do. "
        "P: share of pairs of runs in which the method scores higher than the baseline. "
        "gain kept: at the end, of the highest gain over the first score, median. collapsed: "
        "runs that keep less than half of it. alarm: runs in which "
        "KL or entropy ran away for at least an iteration. to the best score: "
        f"of the baseline under the same seed, mean over {WINDOW} iterations. A run that does not "
        "get there counts with all of its iterations. Medians over all runs (–: half of them do "
        "not get there); that of the KL over those that do.",
    ]
    return "\n".join(text) + "\n"


def draw(runs: pd.DataFrame, task: str, path: Path) -> None:
    """Score and KL against iterations, with the spread over seeds, and score against KL.

    Methods without a colour of their own get those of matplotlib. Where a colour comes again, its
    dashes differ.
    """
    measured = "fresh_gold" in runs and runs["fresh_gold"].notna().any()
    figure = new_figure(20 if measured else 15, 5.2)
    panels = figure.subplots(1, 4 if measured else 3)
    times_drawn: Counter[str] = Counter()
    for method, rows in runs.groupby("method", sort=False):
        color = METHODS[method].color if method in METHODS else None
        wide = {
            column: rows.pivot(index="iteration", columns="seed", values=column)
            .rolling(WINDOW, min_periods=1)
            .mean()
            for column in ("score", "kl")
        }
        (line,) = panels[0].plot(wide["score"].mean(axis=1), color=color, label=method)
        color = line.get_color()
        dashes = _DASHES[times_drawn[color] % len(_DASHES)]
        times_drawn[color] += 1
        line.set_linestyle(dashes)
        spread = wide["score"].quantile([0.25, 0.75], axis=1)
        panels[0].fill_between(spread.columns, *spread.to_numpy(), color=color, alpha=0.12)
        kl, score = wide["kl"].mean(axis=1), wide["score"].mean(axis=1)
        panels[1].plot(kl, color=color, linestyle=dashes)
        panels[2].plot(kl, score, color=color, linestyle=dashes)
        if measured:
            gold = rows.groupby("iteration")[["fresh_kl", "fresh_gold"]].mean().dropna()
            panels[3].plot(gold["fresh_kl"], gold["fresh_gold"], "o", color=color, linestyle=dashes)
    label_panels(panels[:3], TASKS[task].kl_budget)
    if measured:
        panels[3].set_xlabel(panels[2].get_xlabel())
        panels[3].set_ylabel("score by the gold reward model")
        panels[3].grid(alpha=0.3)
    seeds = runs.groupby("method")["seed"].nunique()
    few = f"{seeds.min()} to " if seeds.min() < seeds.max() else ""
    figure.suptitle(
        f"{task}: {few}{seeds.max()} seeds. Lines: means over seeds and {WINDOW} iterations; "
        "bands: the middle half of the seeds; dotted: KL budget",
        fontsize=10,
    )
    save(figure, path)


def _judged_rows(path: Path) -> pd.DataFrame:
    """The rows of all runs. What is left to judge is judged and stored."""
    runs = read_rows(path)
    if len(left_to_judge(runs)):
        with only_writer(path.parent):
            runs = judge(read_rows(path))
            write_rows(runs, path)
    return runs


def _at_equal_kl(runs: pd.DataFrame, order: Sequence[str], budget: float) -> list[str]:
    levels = [budget * fifths / 5 for fifths in range(1, 8)]
    lines = []
    for method in order:
        seeds = [run for _, run in runs[runs["method"] == method].groupby("seed")]
        cells = [method]
        for level in levels:
            scores = pd.Series([score_at_kl(run, level) for run in seeds]).dropna()
            number = "" if len(scores) == len(seeds) else f" ({len(scores)})"
            cells.append(f"{scores.mean():+.2f}{number}" if len(scores) else "–")
        lines.append(cells)
    return markdown_table(["method", *(f"KL {level:g}" for level in levels)], lines)


def _stability(by_method: dict[str, pd.DataFrame]) -> list[str]:
    lines = []
    for method, rows in by_method.items():
        spread = f"{rows['final'].std():.2f}" if len(rows) > 1 else "–"
        kept = rows["kept"].median()
        cells = [method, f"{rows['kl'].mean():.1f}", spread]
        cells.append("–" if math.isnan(kept) else f"{kept:.0%}")
        cells.append(f"{rows['collapsed'].sum():.0f} of {len(rows)}")
        logged = rows["alarmed"].dropna()
        cells.append(f"{logged.sum():.0f} of {len(logged)}" if len(logged) else "–")
        lines.append(cells)
    header = ["method", "KL at the end", "standard deviation of the final score", "gain kept"]
    return markdown_table([*header, "collapsed", "alarm"], lines)


def _speed(by_method: dict[str, pd.DataFrame]) -> list[str]:
    lines = []
    for method, all_rows in by_method.items():
        # Under a seed that the baseline has not run, there is no goal to reach.
        rows = all_rows.dropna(subset=["share"])
        if rows.empty:
            lines.append([method, *["–"] * 6])
            continue
        there = rows.dropna(subset=["iterations"])
        estimate = stratified_bootstrap(rows["share"])
        cells = [method, f"{estimate:.0%}", f"{len(there)} of {len(rows)}"]
        # A run that does not get there takes longer than all that do.
        medians = rows[["iterations", "tokens", "seconds"]].fillna(math.inf).median()
        cells += ["–" if math.isinf(median) else f"{median:,.0f}" for median in medians]
        cells.append("–" if there.empty else f"{there['kl_there'].median():,.0f}")
        lines.append(cells)
    header = ["method", "share of its iterations", "get there", "iterations", "tokens"]
    return markdown_table([*header, "seconds", "KL there"], lines)


def fresh_table(by_method: Mapping[str, pd.DataFrame]) -> list[str]:
    """What was measured of fresh completions, mean over seeds; a line per method and point.

    Args:
        by_method: The rows of each method's runs; those without measures are passed over.
    """
    lines = []
    columns = {
        column: shown
        for column, shown in _FRESH.items()
        if any(column in rows for rows in by_method.values())
    }
    for method, rows in by_method.items():
        measured = rows.dropna(subset=["fresh_score"])
        for iteration, means in measured.groupby("iteration")[list(columns)].mean().iterrows():
            cells = [
                "–" if pd.isna(means[column]) else f"{means[column]:{form}}"
                for column, (_, form) in columns.items()
            ]
            lines.append([method, str(iteration), *cells])
    names = [name for name, _ in columns.values()]
    return markdown_table(["method", "iterations", *names], lines)


def _tasks(runs: pd.DataFrame, suite: Suite) -> list[str]:
    present = set(runs["task"])
    return [task for task in suite.tasks if task in present]


def _in_order(methods: Iterable[str], suite: Suite) -> list[str]:
    """The suite's methods in its order, then the others."""
    present = list(methods)
    listed = [method for method in suite.methods if method in present]
    return listed + [method for method in present if method not in listed]
