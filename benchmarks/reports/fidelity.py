"""Table and figure of credit_fidelity.py, made from its raw numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.statistics import bootstrap_mean
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["missing", "write"]

FILES = (
    "correlation.parquet",
    "gradient.csv",
    "erasure.csv",
    "erasure_metrics.parquet",
    "cost.csv",
)
HORIZON = 4  # tokens of the completions that gradient.csv enumerates
ALIASES = {"method": {"attention shaping": "causal shaping"}}
"""What methods were called in earlier results."""
DRAWN = {
    "random": "#999999",
    "shuffled ABC": "#56B4E9",
    "ABC": "#E69F00",
    "causal shaping": "#009E73",
    "prefix score (RED)": "#CC79A7",
    "occlusion": "#0072B2",
    "Shapley, tokens": "#D55E00",
}
# The others lie too close together to be named in the picture of the gradients.
ANNOTATED = {
    "sparse": ("sparse, causal,\ngradient × input", (-50, 8)),
    "uniform": ("uniform", (-38, 5)),
    "ABC": ("ABC", (-6, -14)),
    "ABC-D": ("ABC-D", (6, -4)),
    "ABC-D2": ("ABC-D2", (6, -4)),
    "integrated gradients": ("integrated gradients", (-30, -13)),
    "occlusion": ("occlusion", (-54, -3)),
    "Shapley, tokens": ("Shapley, tokens", (6, -4)),
}


def missing(output: Path) -> list[str]:
    """Files that are needed and not there."""
    return [name for name in FILES if not (output / name).exists()]


def write(output: Path) -> str:
    """Write table.md and fidelity.png; returns the table."""
    raw = {name: read_rows(output / name, aliases=ALIASES) for name in FILES}
    table = make_table(raw)
    (output / "table.md").write_text(table, encoding="utf-8")
    draw(raw, output / "fidelity.png")
    return table


def make_table(raw: Mapping[str, pd.DataFrame]) -> str:
    """One row per method, in the order of gradient.csv."""
    correlation = raw["correlation.parquet"]
    gradient = raw["gradient.csv"].query("beta == 1").set_index("method")
    metrics = raw["erasure_metrics.parquet"].drop(columns="completion")
    metrics = metrics.groupby(["task", "method"]).mean()
    cost = raw["cost.csv"].query("task == 'embedded'")
    cost = cost.assign(ratio=cost["seconds"] / cost["plain_seconds"])
    grouped = cost.groupby(["new_tokens", "method"])
    ratio, passes = grouped["ratio"].median(), grouped[["extra_forward", "backward"]].mean()
    rows = []
    for method, row in gradient.iterrows():
        ranks = correlation[correlation["method"] == method]
        erased = [
            f"{metrics.loc[(task, method), name]:+.2f}"
            for task in ("planted", "embedded")
            for name in ("comprehensiveness", "sufficiency")
        ]
        forward, backward = passes.loc[(48, method)]
        counted = " + ".join(
            f"{count:.0f} {way}" for count, way in ((forward, "f"), (backward, "b")) if round(count)
        )
        rows.append(
            [
                str(method),
                *(_mean_and_interval(ranks[name]) for name in ("signed", "magnitude")),
                f"{row['cosine']:.3f}",
                f"{row['variance']:.2f}",
                *erased,
                counted or "0",
                *(f"{ratio.loc[(length, method)]:.2f}" for length in (16, 48)),
            ]
        )
    header = (
        "method",
        "rank correlation",
        "of magnitudes",
        "gradient cosine",
        "variance",
        "compr. planted",
        "suff. planted",
        "compr. IMDb",
        "suff. IMDb",
        "extra passes",
        "time, 16 tokens",
        "time, 48 tokens",
    )
    return "\n".join(markdown_table(header, rows)) + "\n"


def _mean_and_interval(values: pd.Series) -> str:
    mean, low, high = bootstrap_mean(values)
    return f"{mean:+.2f} ± {(high - low) / 2:.2f}"


def draw(raw: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Six panels: correlation, bias and variance, bias by β, and three curves of erasure."""
    figure = new_figure(13, 9)
    panels = figure.subplots(2, 3)
    gradient, curves = raw["gradient.csv"], raw["erasure.csv"]
    planted, imdb = curves.query("task == 'planted'"), curves.query("task == 'embedded'")
    draw_correlation(panels[0, 0], raw["correlation.parquet"], list(gradient["method"].unique()))
    draw_gradient(panels[0, 1], gradient.query("beta == 1").set_index("method"))
    draw_betas(panels[0, 2], gradient)
    draw_erasure(panels[1, 0], planted, "deletion", "planted task")
    draw_erasure(panels[1, 1], imdb, "deletion", "IMDb completions")
    draw_erasure(panels[1, 2], imdb, "insertion", "IMDb completions")
    save(figure, path)


def draw_correlation(axes: Axes, correlation: pd.DataFrame, methods: list[str]) -> None:
    """Bars with intervals, a pair per method."""
    names = methods[::-1]
    place = np.arange(len(names))
    for kind, color, offset in (("signed", "#0072B2", 0.2), ("magnitude", "#E69F00", -0.2)):
        values = [correlation[correlation["method"] == name][kind] for name in names]
        center, low, high = np.array([bootstrap_mean(one) for one in values]).T
        label = "credits" if kind == "signed" else "their magnitudes"
        error = [center - low, high - center]
        axes.barh(place + offset, center, 0.4, color=color, xerr=error, label=label)
    axes.set_yticks(place, names, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("rank correlation with the true contributions")
    axes.set_title("planted task (lines: 95% intervals)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def draw_gradient(axes: Axes, rows: pd.DataFrame) -> None:
    """Bias against variance, a point per method."""
    for method, row in rows.iterrows():
        color = DRAWN.get(str(method), "#333333")
        axes.scatter(row["variance"], row["cosine"], color=color, zorder=3)
        if method in ANNOTATED:
            text, offset = ANNOTATED[str(method)]
            place = row["variance"], row["cosine"]
            axes.annotate(text, place, offset, fontsize=8, textcoords="offset points")
    axes.set_ylim(top=1.05)
    axes.set_xlabel("variance of a one-episode estimate ÷ that of sparse")
    axes.set_ylabel("cosine with the gradient of sparse reward")
    axes.set_title(f"all completions of {HORIZON} tokens, β = 1", fontsize=10)
    axes.grid(alpha=0.3)


def draw_betas(axes: Axes, gradient: pd.DataFrame) -> None:
    """Bias against the share that is redistributed."""
    for method, color in DRAWN.items():
        rows = gradient[gradient["method"] == method]
        axes.plot([0, *rows["beta"]], [1, *rows["cosine"]], color=color, label=method)
    axes.set_xlabel("β, share of the score that is redistributed")
    axes.set_ylabel("cosine with the gradient of sparse reward")
    axes.set_title("planted task", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def draw_erasure(axes: Axes, curves: pd.DataFrame, kind: str, title: str) -> None:
    """Score against the share of tokens that is deleted or kept."""
    for method, color in DRAWN.items():
        rows = curves[curves["method"] == method]
        axes.plot(rows["fraction"], rows[kind], color=color, label=method)
    verb = "deleted" if kind == "deletion" else "kept alone"
    axes.set_xlabel(f"share of tokens {verb}, most credit first")
    axes.set_ylabel("score, towards the whole text's sign")
    axes.set_title(f"{kind}, {title}", fontsize=10)
    axes.grid(alpha=0.3)
