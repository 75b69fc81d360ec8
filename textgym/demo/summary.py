"""The demo's table: what each run reached, and how soon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.table import Table

from textgym.demo.protocol import ENDS, NUM_ENVS, SMOOTHING
from textgym.plotting import first_reached, trailing_mean

__all__ = ["Summary", "summarize", "summary_table"]

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """A row of the table.

    Attributes:
        label: Name of the method.
        first_score: Mean score over the first :data:`ENDS` iterations.
        last_score: Mean score over the last :data:`ENDS` iterations.
        last_kl: Mean KL to the reference policy over the last :data:`ENDS` iterations, in nats.
        iterations_to_best: The first iteration whose trailing mean score over :data:`SMOOTHING`
            iterations reaches the best one of the first run; None if none does.
        seconds: Seconds of training.
    """

    label: str
    first_score: float
    last_score: float
    last_kl: float
    iterations_to_best: int | None
    seconds: float


def summarize(runs: Mapping[str, Rows]) -> list[Summary]:
    """Compute the table from the scalars of the iterations.

    Args:
        runs: Rows of scalars by label; the best score of the first run is the one to reach.
    """
    scores = {label: [row["rollout/score_mean"] for row in rows] for label, rows in runs.items()}
    goal = trailing_mean(next(iter(scores.values())), SMOOTHING).max()
    return [
        Summary(
            label=label,
            first_score=fmean(scores[label][:ENDS]),
            last_score=fmean(scores[label][-ENDS:]),
            last_kl=fmean(row["rollout/kl"] for row in rows[-ENDS:]),
            iterations_to_best=first_reached(scores[label], goal, SMOOTHING),
            seconds=rows[-1]["time/seconds"],
        )
        for label, rows in runs.items()
    ]


def summary_table(summaries: Sequence[Summary], iterations: int, seed: int) -> Table:
    """Lay out the summaries.

    Args:
        summaries: One per method.
        iterations: Length of the runs.
        seed: Their seed.
    """
    ends, smoothing = min(ENDS, iterations), min(SMOOTHING, iterations)
    table = Table(
        title=f"Measured in this run: one seed ({seed}), {iterations} iterations "
        f"of {NUM_ENVS} episodes",
        caption="Each method has the settings that a search found best for it. "
        f"first {ends}, last {ends}: means over the first and the last {ends} iterations. "
        "KL: to the reference policy, in nats per episode. Sparse's best: the highest mean score "
        f"of the sparse reward over {smoothing} consecutive iterations; a run reaches it in the "
        f"first iteration whose mean over the last {smoothing} is as high. One seed cannot tell "
        "which method is better: docs/findings.md compares them under five.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for header in (
        f"score,\nfirst {ends}",
        f"score,\nlast {ends}",
        f"KL,\nlast {ends}",
        "iterations to\nsparse's best",
        "training\nseconds",
    ):
        table.add_column(header, justify="right")
    for row in summaries:
        reached = "not reached" if row.iterations_to_best is None else str(row.iterations_to_best)
        table.add_row(
            row.label,
            f"{row.first_score:+.2f}",
            f"{row.last_score:+.2f}",
            f"{row.last_kl:.2f}",
            reached,
            f"{row.seconds:.0f}",
        )
    return table
