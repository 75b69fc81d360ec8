"""The page docs/leaderboard.md, made from the runs of the suite "leaderboard"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from textgym.benchmark import SUITES, TASKS
from textgym.benchmark.comparison import corrected_by_holm, differences_from, format_p
from textgym.benchmark.measures import ENDS
from textgym.benchmark.report import measure_all
from textgym.benchmark.statistics import interquartile_mean, stratified_bootstrap
from textgym.benchmark.tables import markdown_table

__all__ = ["make_leaderboard"]

TITLES = {
    "8-16": "Film reviews of 8 to 16 tokens",
    "140-160": "Film reviews of 140 to 160 tokens",
    "planted": "The planted task",
}
"""What the page calls a task."""

HEAD = """# Leaderboard

Which agent and which credit learn best? Every entry trains the same policy on the same score for
{iterations} iterations of 16 episodes; [protocol.md](protocol.md) says what else is kept. The order
is that of the area under the score curve, in which iterations above a KL budget count less. A rank
alone says little: read the difference from the first entry, and its p. Scores are in standard
deviations of the untrained policy's score, with 95% intervals in brackets.

The tables are made from the rows in
[`benchmarks/results/suites/leaderboard`](../benchmarks/results/suites/leaderboard), by
`python benchmarks/suites.py --tables-only`.
"""

FOOT = """
## How to read it

- **minus the first**: the mean difference under the same seeds, with the interval of a paired
  t-test, and its p after Holm's correction for all rows of the table. Above .05, the seeds do not
  separate an entry from the first. The first was chosen for its result, which flatters its lead.
- **gold**: what a reward model that none of these policies was trained on says of 512 fresh
  completions at the end, in log-odds.
- **Settings** of the bundled agents won [a search](learning.md#each-method-at-its-best) at 8 to 16
  tokens, [another](learning.md#at-140-to-160-tokens) at 140 to 160, and
  [a third](learning.md#the-search-on-the-planted-task) on the planted task.
- **Agents of Stable-Baselines3** were searched in the same way on the planted task. On film reviews
  their settings had no search. An iteration of theirs has as many tokens as 16 episodes have on
  average, and may cut episodes at either end. Their KL is an estimate, and they draw prompts and
  tokens in their own way, so equal seeds do not pair them.
  DQN is missing, because it cannot choose among a whole vocabulary; [agents.md](agents.md) has it,
  on 16 tokens.

## How to enter

1. Write your agent, your credit assigner or your settings into a file, as
   [protocol.md](protocol.md#your-own-method) shows.
2. To see it beside the others, copy `benchmarks/results/suites/leaderboard` to
   `benchmark/leaderboard`.
3. Run it, in the dtype of the other entries. `--seeds` runs a part, and what is stored is not run
   again:

   ```sh
   textgym benchmark run leaderboard --methods mine.py --only "my method" --jobs 2 \\
       --tasks 8-16 --dtype bfloat16
   textgym benchmark run leaderboard --methods mine.py --only "my method" --jobs 2 \\
       --tasks 140-160 planted --dtype float32
   ```

4. Open a pull request with the file, the rows (`runs.parquet`) and `meta.json`. Rows name the
   commit. Say how many settings you tried: of each bundled agent and credit, 20 were on short
   texts and on the planted task, and ten on long texts.
"""


def make_leaderboard(runs: pd.DataFrame, methods: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        runs: Rows of the suite's runs, with what judges said of fresh completions.
        methods: ``agent`` and ``credit`` of each method, as ``meta.json`` has them.
    """
    suite = SUITES["leaderboard"]
    measured = measure_all(runs, suite.baseline)
    parts = [HEAD.format(iterations=suite.iterations)]
    for task in suite.tasks:
        rows = measured[measured["task"] == task]
        parts.append(f"## {TITLES[task]}\n")
        if len(rows):
            parts.append("\n".join(_ranking(rows, runs[runs["task"] == task], methods)) + "\n")
            dtypes = " or ".join(runs.loc[runs["task"] == task, "dtype"].unique())
            parts.append(
                f"KL budget: {TASKS[task].kl_budget:.0f} nats per completion. At the end: mean of "
                f"the last {ENDS} iterations. Computed in {dtypes}.\n"
            )
        else:
            parts.append("Not run yet.\n")
    return "\n".join(parts) + FOOT


def _ranking(
    measured: pd.DataFrame, runs: pd.DataFrame, methods: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    ends = runs.groupby(["method", "seed"]).tail(1)
    gold = ends.groupby("method")["fresh_gold"].mean() if "fresh_gold" in ends else pd.Series()
    entries = {str(method): rows.set_index("seed") for method, rows in measured.groupby("method")}
    areas = {method: rows["area"] for method, rows in entries.items()}
    ranks = sorted(areas, key=lambda method: interquartile_mean(areas[method]), reverse=True)
    behind = differences_from(ranks[0], areas)
    p_values = corrected_by_holm(behind)
    lines = []
    for rank, method in enumerate(ranks, start=1):
        rows = entries[method]
        cells = [
            str(rank),
            method,
            re.sub(r"SB3Agent\('(\w+)'\)", r"SB3 \1", methods[method]["agent"]),
            f"`{methods[method]['credit']}`",
            str(len(rows)),
            str(stratified_bootstrap(areas[method])),
            str(behind[method]) if method in behind else "–",
            format_p(p_values[method]) if method in behind else "–",
            str(stratified_bootstrap(rows["final"])),
            f"{rows['kl'].mean():.0f}",
            f"{gold[method]:+.2f}" if pd.notna(gold.get(method)) else "–",
            f"{rows['collapsed'].sum():.0f}",
        ]
        lines.append(cells)
    header = ["", "method", "agent", "credit", "seeds", "area under the curve", "minus the first"]
    return markdown_table([*header, "p", "score at the end", "KL", "gold", "collapsed"], lines)
