"""Tables and figures of tuning.py, made from the rows of its runs alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import pandas as pd

from harness.halving import best_settings
from textgym.benchmark.comparison import (
    NOTE,
    compare,
    corrected_by_holm,
    differences_from,
    format_p,
)
from textgym.benchmark.curves import label_panels, new_figure, save
from textgym.benchmark.measures import ENDS, WINDOW, best_score, reached_at, score_at_kl_budget
from textgym.benchmark.report import fresh_table
from textgym.benchmark.statistics import stratified_bootstrap
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table
from training.plan import ABLATED, METHODS, TASKS, UNTRAINED, VARIANTS, with_learning_rates

from . import frontier

__all__ = ["KEYS", "chosen", "describe_run", "finalists", "value_of", "write"]

KEYS = ("method", "setting", "iterations", "seed")
T = TypeVar("T")
_LEVELS = (1.0, 2.0)


def value_of(task: str, run: pd.DataFrame) -> float:
    """The criterion of the search."""
    return score_at_kl_budget(run, TASKS[task].of_suites.kl_budget, WINDOW)


def describe_run(task: str, run: pd.DataFrame) -> str:
    """What is printed of a run that has finished."""
    if "score" not in run:
        return f"score {run['fresh_score'].iloc[-1]:+.2f}"
    last = run.tail(ENDS)
    return (
        f"criterion {value_of(task, run):+.2f}, at the end score {last['score'].mean():+.2f}, "
        f"KL {last['kl'].mean():.0f}"
    )


def finalists(output: Path, task: str) -> dict[str, list[str]]:
    """By method, the settings that the search kept, the best first.

    Args:
        output: Folder of the results.
        task: One of the plan's.
    """
    rungs = TASKS[task].rungs
    runs = read_rows(output / task / "search" / "runs.parquet", KEYS)
    full = runs[(runs["iterations"] == rungs[-1].iterations)]
    last_seeds = full[full["seed"].isin(rungs[-1].seeds)]
    # Of the settings that came to the last rung, all runs of its length count.
    full = full.merge(last_seeds[["method", "setting"]].drop_duplicates())
    return best_settings(full, lambda run: value_of(task, run), rungs[-1].keep)


def chosen(output: Path, task: str) -> dict[str, str]:
    """By method, the setting that the search found best."""
    return {method: settings[0] for method, settings in finalists(output, task).items()}


def write(output: Path) -> str:
    """Write table.md, and the figure of each task that has runs; returns the tables."""
    texts = []
    for task in TASKS:
        searched, tested, traded, ablated = (
            output / task / stage / "runs.parquet"
            for stage in ("search", "test", "frontier", "ablation")
        )
        if tested.exists():
            runs = read_rows(tested)
            texts.append(f"# {task}: test\n\n{make_test_tables(task, runs)}")
            draw(task, runs, tested.with_name("learning_curves.png"))
        if searched.exists():
            texts.append(f"# {task}: search\n\n{make_search_table(output, task)}")
            if len(TASKS[task].learning_rate_factors) > 1:
                texts.append(f"# {task}: learning rates\n\n{make_rates_table(output, task)}")
        if traded.exists():
            runs = read_rows(traded)
            texts.append(f"# {task}: frontier\n\n{frontier.make_tables(runs)}")
            frontier.draw(task, runs, traded.with_name("frontier.png"))
        if ablated.exists():
            table = make_ablation_table(task, read_rows(ablated))
            texts.append(f"# {task}: ablation\n\n{table}")
    text = "\n".join(texts)
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def make_search_table(output: Path, task: str) -> str:
    """The settings that were kept, with their values, and how many were tried."""
    runs = read_rows(output / task / "search" / "runs.parquet")
    lines = []
    for method, settings in _in_order(finalists(output, task)).items():
        of_method = runs[runs["method"] == method]
        for setting in settings:
            rows = of_method[of_method["setting"] == setting]
            full = rows[rows["iterations"] == TASKS[task].iterations]
            values = [value_of(task, run) for _, run in full.groupby("seed")]
            cells = [method, _plain(setting), ", ".join(f"{value:+.2f}" for value in values)]
            ends = full[full["iteration"] > full["iterations"] - ENDS].groupby("seed")
            for column, form in (("score", "{:+.2f}"), ("kl", "{:.0f}")):
                cells.append(", ".join(form.format(value) for value in ends[column].mean()))
            lines.append([*cells, str(of_method["setting"].nunique())])
    text = [
        f"Criterion (see tuning.py) of each full run of the settings that were kept, the best "
        f"first; mean score and KL over its last {ENDS} iterations; number of settings that were "
        "tried. Each cell lists the seeds in order.",
        "",
        *markdown_table(["method", "setting", "criterion", "score", "KL", "tried"], lines),
    ]
    return "\n".join(text) + "\n"


def make_rates_table(output: Path, task: str) -> str:
    """What the learning rate does to the settings that a search started from."""
    factors, source = TASKS[task].learning_rate_factors, TASKS[task].settings_from
    assert source is not None
    rung = TASKS[task].rungs[0]
    runs = read_rows(output / task / "search" / "runs.parquet", KEYS)
    runs = runs[(runs["iterations"] == rung.iterations) & runs["seed"].isin(rung.seeds)]
    by_setting = dict(list(runs.groupby(["method", "setting"])))
    lines = []
    for method, settings in _in_order(finalists(output, source)).items():
        for setting in settings:
            tried = [by_setting.get((method, s)) for s in with_learning_rates(setting, factors)]
            if any(run is not None for run in tried):
                cells = ["–" if run is None else _value_and_kl(task, run) for run in tried]
                lines.append([method, _plain(setting), *cells])
    header = ["method", "setting", *(f"× {Fraction(factor)}" for factor in factors)]
    text = [
        f"Settings that the search on {source} kept, with their learning rate times a factor: the "
        f"criterion of {rung.iterations} iterations under seed {rung.seeds[0]}, and the mean KL of "
        "the last three in nats. A single seed is an observation.",
        "",
        *markdown_table(header, lines),
    ]
    return "\n".join(text) + "\n"


def _value_and_kl(task: str, run: pd.DataFrame) -> str:
    return f"{value_of(task, run):+.2f} ({run['kl'].tail(3).mean():.0f})"


def make_test_tables(task: str, runs: pd.DataFrame) -> str:
    """What the chosen settings do on fresh seeds: learning, speed, holding, fresh completions."""
    trained = runs[runs["method"] != UNTRAINED]
    by_method = _in_order(dict(list(trained.groupby("method"))))
    values = {m: _per_seed(rows, lambda run: value_of(task, run)) for m, rows in by_method.items()}
    ends = {
        m: _per_seed(rows, lambda run: run["score"].tail(ENDS).mean())
        for m, rows in by_method.items()
    }
    text = [
        f"{TASKS[task].title}; {TASKS[task].iterations} iterations of 16 episodes.",
        "",
        "## The criterion: mean score over all iterations, at a KL budget of "
        f"{TASKS[task].of_suites.kl_budget:.0f} nats",
        "",
        *compare(values, "sparse"),
        "",
        "## The end of the runs",
        "",
        *compare(ends, "sparse"),
        "",
        NOTE.format(what=f"{ENDS} iterations (in the first table: the criterion)"),
        "",
        "## How fast, and does it hold?",
        "",
        *_speed_table(by_method),
        "",
        f"to +1, to +2: the first iteration whose mean score over {WINDOW} iterations reaches it, "
        "and the KL there, medians over seeds; and how many seeds get there. holds: the mean score "
        f"of the last {ENDS} iterations over the best mean over {WINDOW} iterations, median over "
        "seeds, and the number of seeds with at least .95. The best mean of a few episodes is "
        "partly luck. So fresh has the score of the last 512 fresh completions over the best of "
        "those measured in the run.",
        "",
        *(_race_section(by_method) if "sparse" in by_method else []),
        "## Fresh completions",
        "",
        *fresh_table(_in_order(dict(list(runs.groupby("method"))), (UNTRAINED,))),
        "",
        "512 completions to the same prompts, mean over seeds. outside scorer: log-odds of a "
        "positive text, by a logistic regression on words and pairs of words that no policy was "
        "trained on. distinct-2: share of different pairs of neighbouring words.",
    ]
    return "\n".join(text) + "\n"


def make_ablation_table(task: str, runs: pd.DataFrame) -> str:
    """What one changed choice does to the best setting of the ablated method."""
    by_variant = dict(list(runs.groupby("method")))
    values = {
        name: _per_seed(by_variant[name], lambda run: value_of(task, run))
        for name in VARIANTS
        if name in by_variant
    }
    tuned = values["as tuned"]
    differences = differences_from("as tuned", values)
    p_values = corrected_by_holm(differences)
    lines = []
    for name in values:
        rows = by_variant[name]
        means = rows.groupby("iteration")[["score", "kl"]].mean()
        reached = _reached(rows, pd.Series(2.0, index=tuned.index))["iteration"]
        is_changed = name in differences
        lines.append(
            [
                name,
                ", ".join(f"{value:+.2f}" for value in values[name]),
                f"{differences[name].value:+.2f}" if is_changed else "–",
                format_p(p_values[name]) if is_changed else "–",
                ", ".join("–" if pd.isna(i) else f"{i:.0f}" for i in reached),
                f"{means['score'].tail(ENDS).mean():+.2f}",
                f"{means['kl'].tail(ENDS).mean():.0f}",
                f"{_per_seed(rows, _end_over_best).mean():.2f}",
            ]
        )
    header = ["variant", "criterion", "minus as tuned", "p", "iterations to +2", "score", "KL"]
    text = [
        f"The best setting of {ABLATED} with one choice changed, under {len(tuned)} seeds in "
        "order. minus as tuned: mean of the differences under equal seeds, with the p of a paired "
        "t-test after Holm's correction for all rows. iterations to +2: until the mean score over "
        f"{WINDOW} iterations is 2. score, KL: means over the last {ENDS} iterations. holds: mean "
        f"score of the last {ENDS} iterations over the best mean over {WINDOW}. So few seeds are "
        "an observation.",
        "",
        *markdown_table([*header, "holds"], lines),
    ]
    return "\n".join(text) + "\n"


def _speed_table(by_method: dict[str, pd.DataFrame]) -> list[str]:
    lines = []
    for method, rows in by_method.items():
        seeds = rows["seed"].unique()
        cells = [method]
        for goal in _LEVELS:
            points = _reached(rows, pd.Series(goal, index=seeds))
            iteration, kl = points["iteration"].fillna(float("inf")).median(), points["kl"].median()
            there = f"{points['iteration'].notna().sum()} of {len(points)}"
            cells.append(
                f"{iteration:.0f} (KL {kl:.0f}; {there})"
                if iteration < float("inf")
                else f"– ({there})"
            )
        hold, fresh = _per_seed(rows, _end_over_best), _per_seed(rows, _fresh_end_over_best)
        cells += [f"{v.median():.2f}; {(v >= 0.95).sum()} of {len(v)}" for v in (hold, fresh)]
        lines.append(cells)
    header = ["method", *(f"to {goal:+.0f}" for goal in _LEVELS), "holds", "holds, fresh"]
    return markdown_table(header, lines)


def _race_section(by_method: dict[str, pd.DataFrame]) -> list[str]:
    return [
        "## To the best of sparse reward",
        "",
        *_race_table(by_method),
        "",
        f"sparse's best: the highest mean score over {WINDOW} iterations of sparse reward under "
        "the same seed, whatever its KL. share: of the iterations that sparse itself needs for it; "
        "interquartile mean over seeds, 95% bootstrap interval. A run that does not get there "
        "counts with all of its iterations, so the share is then too low. KL: at that point, "
        "median over the seeds that get there.",
        "",
    ]


def _race_table(by_method: dict[str, pd.DataFrame]) -> list[str]:
    """When each method reaches the best of sparse reward, under the same seed."""
    best = _per_seed(by_method["sparse"], best_score)
    reached = {method: _reached(rows, best) for method, rows in by_method.items()}
    lines = []
    for method, rows in by_method.items():
        points = reached[method].join(reached["sparse"]["iteration"].rename("sparse"), how="inner")
        share = points["iteration"].fillna(rows["iteration"].max()) / points["sparse"]
        estimate = stratified_bootstrap(share)
        lines.append(
            [
                method,
                ", ".join("–" if pd.isna(i) else f"{i:.0f}" for i in points["iteration"]),
                f"{estimate:.0%}",
                f"{points['iteration'].notna().sum()} of {len(points)}",
                f"{points['kl'].median():.0f}",
            ]
        )
    header = ["method", "iterations to sparse's best", "share", "get there", "KL there"]
    return markdown_table(header, lines)


def _end_over_best(run: pd.DataFrame) -> float:
    return float(run["score"].tail(ENDS).mean() / best_score(run))


def _fresh_end_over_best(run: pd.DataFrame) -> float:
    scores = run["fresh_score"].dropna()
    return float(scores.iloc[-1] / scores.max())


def _reached(rows: pd.DataFrame, goals: pd.Series) -> pd.DataFrame:
    """By seed, when a method reaches its goal, and its KL then; NaN if it does not."""
    points = {
        seed: reached_at(run, goals[seed])
        for seed, run in rows.groupby("seed")
        if seed in goals.index
    }
    return pd.DataFrame.from_dict(points, orient="index", columns=["iteration", "kl"])


def draw(task: str, runs: pd.DataFrame, path: Path) -> None:
    """Score against iterations, KL against iterations, and score against KL: the frontier."""
    figure = new_figure(15, 4.8)
    panels = figure.subplots(1, 3)
    for method, rows in _in_order(dict(list(runs.groupby("method")))).items():
        color = METHODS[method].color
        means = rows.groupby("iteration")[["score", "kl"]].mean().rolling(WINDOW).mean()
        fresh = rows.dropna(subset=["fresh_score"]).groupby("iteration").mean(numeric_only=True)
        panels[0].plot(means.index, means["score"], color=color, label=method)
        panels[1].plot(means.index, means["kl"], color=color)
        panels[2].plot(means["kl"], means["score"], color=color)
        panels[2].plot(fresh["fresh_kl"], fresh["fresh_score"], "o", color=color, markersize=4)
    label_panels(panels, TASKS[task].of_suites.kl_budget)
    figure.suptitle(
        f"{TASKS[task].title}, {runs['seed'].nunique()} seeds, each method at its best setting. "
        f"Means over seeds and {WINDOW} iterations; dots: 512 fresh completions; dotted: KL budget",
        fontsize=10,
    )
    save(figure, path)


def _per_seed(rows: pd.DataFrame, function: Callable[[pd.DataFrame], float]) -> pd.Series:
    return pd.Series({seed: function(run) for seed, run in rows.groupby("seed")})


def _in_order(by_method: dict[str, T], first: tuple[str, ...] = ()) -> dict[str, T]:
    return {method: by_method[method] for method in (*first, *METHODS) if method in by_method}


def _plain(setting: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in json.loads(setting).items())
