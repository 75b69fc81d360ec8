"""Tables and figure of agents.py, made from runs.parquet alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from textgym.benchmark.comparison import (
    NOTE,
    compare,
    corrected_by_holm,
    differences_from,
    format_p,
)
from textgym.benchmark.curves import new_figure, save
from textgym.benchmark.statistics import student_half_width
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table
from textgym.plotting import first_reached

from .ends import mean_of_last

__all__ = [
    "ABC",
    "AGENTS",
    "ALIASES",
    "CHUNK",
    "KEYS",
    "REWARDS",
    "SHAPING",
    "SPARSE",
    "ends_of",
    "write",
]

KEYS = ("agent", "reward", "seed")
REWARDS = SPARSE, SHAPING, ABC = ("sparse", "causal shaping", "ABC")
ALIASES = {"reward": {"shaping": SHAPING, "credit": ABC}}
"""What rewards were called in earlier results."""
CHUNK = 64
"""Episodes per row."""
START, END = 128, 256
"""Episodes at either end of a run that the table compares."""
_RANDOM_OF_LIKELIEST, _RANDOM_OF_ALL = "random, 16 likeliest", "random, all tokens"
AGENTS = {
    _RANDOM_OF_LIKELIEST: _RANDOM_OF_LIKELIEST,
    "SB3 PPO, MLP": _RANDOM_OF_LIKELIEST,
    "SB3 A2C, MLP": _RANDOM_OF_LIKELIEST,
    "SB3 DQN, MLP": _RANDOM_OF_LIKELIEST,
    "MaskablePPO, MLP": _RANDOM_OF_LIKELIEST,
    _RANDOM_OF_ALL: _RANDOM_OF_ALL,
    "SB3 PPO, language model": _RANDOM_OF_ALL,
    "PPO": _RANDOM_OF_ALL,
    "RLOO": _RANDOM_OF_ALL,
    "GRPO": _RANDOM_OF_ALL,
}
"""The agents in the order of the table, with the random agent that each is compared with."""


def write(output: Path) -> str:
    """Write table.md, statistics.md and curves.png; returns the table."""
    runs = read_rows(output / "runs.parquet", aliases=ALIASES)
    table = make_table(runs)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "statistics.md").write_text(make_statistics(runs), encoding="utf-8")
    draw(runs, output / "curves.png")
    return table


def ends_of(run: pd.DataFrame) -> tuple[float, float]:
    """Mean score of the first and of the last episodes of a run."""
    episodes = run["episodes"].cumsum()
    first = run[episodes <= max(START, episodes.iloc[0])]
    return float(first["score"].mean()), mean_of_last(run, END)


def steps_to(run: pd.DataFrame, score: float) -> float:
    """Steps until the mean score of ``END`` episodes reaches this; infinite if it never does."""
    row = first_reached(run["score"], score, END // CHUNK)
    return np.inf if row is None else float(run["timesteps"].iloc[row - 1])


def _ends(runs: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """By agent and reward, the start and the end of every seed."""
    ends = {key: ends_of(run) for key, run in runs.groupby(list(KEYS))}
    frame = pd.DataFrame(ends, index=["start", "end"]).T.rename_axis(list(KEYS))
    return {key: group.droplevel([0, 1]) for key, group in frame.groupby(level=[0, 1])}


def make_table(runs: pd.DataFrame) -> str:
    """The score at the end in a row per agent, then a row per agent and reward."""
    ends = _ends(runs)
    lines = [
        f"Mean score of the last {END} episodes, with 95% intervals over seeds (Student's t).",
        "",
        *_overview(runs, ends),
        "",
        f"Mean score over seeds of the first {START} and the last {END} episodes; gain over the "
        "own start and over the random agent of the same form, with 95% intervals over seeds "
        "(Student's t); minutes of processor time, one thread; KL to the reference policy at the "
        "end, nats per episode, of agents that are language models; environment steps until the "
        f"mean of {END} episodes reaches +1, median over seeds.",
        "",
        *_details(runs, ends),
    ]
    return "\n".join(lines) + "\n"


def _overview(runs: pd.DataFrame, ends: dict[tuple[str, str], pd.DataFrame]) -> list[str]:
    rows = []
    for agent in AGENTS:
        of_agent = runs[runs["agent"] == agent]
        if of_agent.empty:
            continue
        cells = [agent, f"{_length(of_agent):,.0f}"]
        for reward in REWARDS:
            missing = (agent, reward) not in ends
            cells.append("–" if missing else _mean(ends[agent, reward]["end"]))
        rows.append(cells)
    return markdown_table(["agent", "environment steps", *REWARDS], rows)


def _details(runs: pd.DataFrame, ends: dict[tuple[str, str], pd.DataFrame]) -> list[str]:
    rows = []
    for agent, random in AGENTS.items():
        level = ends[random, SPARSE]["end"].mean() if (random, SPARSE) in ends else np.nan
        for reward in REWARDS:
            if (agent, reward) not in ends:
                continue
            group = runs[(runs["agent"] == agent) & (runs["reward"] == reward)]
            start, end = ends[agent, reward]["start"], ends[agent, reward]["end"]
            last = group.groupby("seed").last()
            kl = last["kl"].mean()
            steps = np.median([steps_to(run, 1.0) for _, run in group.groupby("seed")])
            rows.append(
                [
                    agent,
                    reward,
                    str(len(end)),
                    f"{_length(group):,.0f}",
                    f"{last['seconds'].mean() / 60:.1f}",
                    f"{start.mean():+.2f}",
                    f"{end.mean():+.2f}",
                    _mean(end - start),
                    "–" if np.isnan(level) else _mean(end - level),
                    "–" if np.isnan(kl) else f"{kl:.1f}",
                    "–" if np.isinf(steps) else f"{steps:,.0f}",
                ]
            )
    header = ["agent", "reward", "seeds", "steps", "CPU min", "start", "end", "gain over start"]
    return markdown_table([*header, "gain over random", "KL", "steps to +1"], rows)


def _length(runs: pd.DataFrame) -> float:
    return float(runs.groupby(list(KEYS))["timesteps"].last().mean())


def _mean(values: pd.Series) -> str:
    return f"{values.mean():+.2f} ± {student_half_width(values):.2f}"


def make_statistics(runs: pd.DataFrame) -> str:
    """How each dense reward compares with sparse reward, a table per agent."""
    ends = _ends(runs)
    lines = [NOTE.format(what=f"{END} episodes")]
    differences = {}
    for agent in AGENTS:
        scores = {r: ends[agent, r]["end"] for r in REWARDS if (agent, r) in ends}
        if SPARSE in scores and len(scores) > 1:
            lines += ["", f"### {agent}", "", *compare(scores, SPARSE)]
            for reward, difference in differences_from(SPARSE, scores).items():
                differences[f"{reward} ({agent})"] = difference
    corrected = corrected_by_holm(differences)
    small = [f"{name}, {format_p(p)}" for name, p in corrected.items() if p < 0.05]
    lines += ["", f"p below 0.05 after Holm's correction for all {len(corrected)} differences:"]
    lines += ["", *(f"- {one}" for one in sorted(small) or ["none"])]
    return "\n".join(lines) + "\n"


def draw(runs: pd.DataFrame, path: Path) -> None:
    """Scores against steps and against processor time, a column per reward."""
    figure = new_figure(13, 9)
    panels = figure.subplots(2, 3, sharey=True)
    names = [name for name in AGENTS if not name.startswith("random")]
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    chunks = runs[runs["episodes"] == CHUNK]  # without what is left over at the end of a run
    labels = {
        "timesteps": "environment steps",
        "seconds": "seconds of processor time, one thread",
    }
    for column, reward in enumerate(REWARDS):
        for row, (x, label) in enumerate(labels.items()):
            axes = panels[row, column]
            for name in names:
                group = chunks[(chunks["agent"] == name) & (chunks["reward"] == reward)]
                if group.empty:
                    continue
                mean = group.groupby(group.groupby("seed").cumcount())[[x, "score"]].mean()
                smooth = mean["score"].rolling(4, min_periods=1).mean()
                axes.plot(mean[x], smooth, label=name, color=colors[name])
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        panels[0, column].set_title(reward)
    for axes in panels[:, 0]:
        axes.set_ylabel("mean score")
    panels[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)
