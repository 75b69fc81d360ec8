"""Table and figure of credit_fidelity.py, made from its raw numbers alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import bootstrap

__all__ = ["draw", "make_table"]

DRAWN = {
    "random": "#999999",
    "shuffled ABC": "#56B4E9",
    "ABC": "#E69F00",
    "attention shaping": "#009E73",
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


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean by the percentile bootstrap."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return result.confidence_interval.low, result.confidence_interval.high


def mean_and_interval(values: np.ndarray) -> str:
    low, high = interval(values)
    return f"{values.mean():+.2f} ± {(high - low) / 2:.2f}"


def make_table(output: Path, methods: Iterable[str]) -> str:
    """One row per method."""
    correlation = pd.read_parquet(output / "correlation.parquet")
    gradient = pd.read_csv(output / "gradient.csv").query("beta == 1").set_index("method")
    metrics = pd.read_parquet(output / "erasure_metrics.parquet")
    metrics = metrics.drop(columns="completion").groupby(["task", "method"]).mean()
    cost = pd.read_csv(output / "cost.csv")
    cost["ratio"] = cost["seconds"] / cost["plain_seconds"]
    grouped = cost.query("task == 'embedded'").groupby(["new_tokens", "method"])
    ratio, passes = grouped["ratio"].median(), grouped[["extra_forward", "backward"]].mean()
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
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for method in methods:
        ranks = correlation[correlation["method"] == method]
        row = gradient.loc[method]
        erased = [
            f"{metrics.loc[(task, method), name]:+.2f}"
            for task in ("planted", "embedded")
            for name in ("comprehensiveness", "sufficiency")
        ]
        forward, backward = passes.loc[(48, method)]
        counted = " + ".join(
            f"{count:.0f} {way}" for count, way in ((forward, "f"), (backward, "b")) if round(count)
        )
        times = [f"{ratio.loc[(length, method)]:.2f}" for length in (16, 48)]
        cells = [
            *(mean_and_interval(ranks[name].to_numpy()) for name in ("signed", "magnitude")),
            f"{row['cosine']:.3f}",
            f"{row['variance']:.2f}",
            *erased,
            counted or "0",
            *times,
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(output: Path, methods: Iterable[str], horizon: int) -> None:
    """Six panels: correlation, bias and variance, bias by β, and three curves of erasure."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    draw_correlation(panels[0, 0], pd.read_parquet(output / "correlation.parquet"), methods)
    gradient = pd.read_csv(output / "gradient.csv")
    draw_gradient(panels[0, 1], gradient.query("beta == 1").set_index("method"), horizon)
    draw_betas(panels[0, 2], gradient)
    curves = pd.read_csv(output / "erasure.csv")
    draw_erasure(panels[1, 0], curves.query("task == 'planted'"), "deletion", "planted task")
    draw_erasure(panels[1, 1], curves.query("task == 'embedded'"), "deletion", "IMDb completions")
    draw_erasure(panels[1, 2], curves.query("task == 'embedded'"), "insertion", "IMDb completions")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output / "fidelity.png", dpi=110)


def draw_correlation(axes, correlation: pd.DataFrame, methods: Iterable[str]) -> None:
    names = list(methods)[::-1]
    place = np.arange(len(names))
    for kind, color, offset in (("signed", "#0072B2", 0.2), ("magnitude", "#E69F00", -0.2)):
        values = [correlation.query("method == @name")[kind].to_numpy() for name in names]
        low, high = np.array([interval(one) for one in values]).T
        center = np.array([one.mean() for one in values])
        label = "credits" if kind == "signed" else "their magnitudes"
        error = [center - low, high - center]
        axes.barh(place + offset, center, 0.4, color=color, xerr=error, label=label)
    axes.set_yticks(place, names, fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("rank correlation with the true contributions")
    axes.set_title("planted task (lines: 95% intervals)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def draw_gradient(axes, rows: pd.DataFrame, horizon: int) -> None:
    for method, row in rows.iterrows():
        color = DRAWN.get(method, "#333333")
        axes.scatter(row["variance"], row["cosine"], color=color, zorder=3)
        if method in ANNOTATED:
            text, offset = ANNOTATED[method]
            place = row["variance"], row["cosine"]
            axes.annotate(text, place, offset, fontsize=8, textcoords="offset points")
    axes.set_ylim(top=1.05)
    axes.set_xlabel("variance of a one-episode estimate ÷ that of sparse")
    axes.set_ylabel("cosine with the gradient of sparse reward")
    axes.set_title(f"all completions of {horizon} tokens, β = 1", fontsize=10)
    axes.grid(alpha=0.3)


def draw_betas(axes, gradient: pd.DataFrame) -> None:
    for method, color in DRAWN.items():
        rows = gradient[gradient["method"] == method]
        axes.plot([0, *rows["beta"]], [1, *rows["cosine"]], color=color, label=method)
    axes.set_xlabel("β, share of the score that is redistributed")
    axes.set_ylabel("cosine with the gradient of sparse reward")
    axes.set_title("planted task", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def draw_erasure(axes, curves: pd.DataFrame, kind: str, title: str) -> None:
    for method, color in DRAWN.items():
        rows = curves[curves["method"] == method]
        axes.plot(rows["fraction"], rows[kind], color=color, label=method)
    verb = "deleted" if kind == "deletion" else "kept alone"
    axes.set_xlabel(f"share of tokens {verb}, most credit first")
    axes.set_ylabel("score, towards the whole text's sign")
    axes.set_title(f"{kind}, {title}", fontsize=10)
    axes.grid(alpha=0.3)
