"""The tables of the committed results come out of the committed raw numbers."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import (
    agents,
    architectures,
    bad_input,
    cleanrl,
    demo_speed,
    fidelity,
    kills,
    learning,
    mismatch,
    pairs,
    precision,
    prefixes,
    processes,
    scale,
    soak,
    suites,
    throughput,
    tuning,
    zoo,
)
from reports.leaderboard import make_leaderboard
from scipy.stats import ttest_rel

from textgym.benchmark.comparison import compare
from textgym.benchmark.storage import read_rows
from textgym.benchmark.training import KEYS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WRITERS = {
    "agents": agents.write,
    "architectures": architectures.write,
    "bad_input": bad_input.write,
    "cleanrl": cleanrl.write,
    "credit_fidelity": fidelity.write,
    "demo_speed": partial(demo_speed.write, iterations=8),
    "kills": kills.write,
    "learning": partial(learning.write, env_id="ABC-RLHF-v0", num_envs=16),
    "learning_planted": partial(learning.write, env_id="ABC-RLHF-Planted-v0", num_envs=64),
    "mismatch": mismatch.write,
    "pairs": pairs.write,
    "pairs_long": pairs.write,
    "precision": partial(precision.write, before=RESULTS / "learning" / "runs.csv"),
    "prefixes": prefixes.write,
    "processes": processes.write,
    "scale": scale.write,
    "soak": soak.write,
    "suites": suites.write,
    "throughput": throughput.write,
    "tuning": tuning.write,
    "zoo": zoo.write,
}


def test_a_run_that_was_made_again_by_a_later_commit_is_the_same_run():
    """So suites may take from one another what they share."""
    main, length = (
        pd.read_parquet(RESULTS / "suites" / name / "runs.parquet") for name in ("main", "length")
    )
    both = length.merge(main, on=[*KEYS, "iteration"], suffixes=("", "_in_main"))
    again = both[both["commit"] != both["commit_in_main"]]
    assert again.groupby("method").size().to_dict() == dict.fromkeys(
        ("ABC", "prefix score", "sparse", "uniform"), 150
    )
    for column in ("score", "kl", "entropy"):
        assert (again[column] == again[f"{column}_in_main"]).all()


@pytest.mark.parametrize("name", WRITERS)
def test_the_tables_come_out_as_they_are_committed(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder, ignore=shutil.ignore_patterns("*.md", "*.png"))
    table = WRITERS[name](folder)
    tables, committed = (
        {path.relative_to(f): path.read_text(encoding="utf-8") for path in f.rglob("*.md")}
        for f in (folder, RESULTS / name)
    )
    assert tables == committed
    assert table == (folder / "table.md").read_text(encoding="utf-8")
    figures, committed_figures = (
        sorted(path.relative_to(f) for path in f.rglob("*.png")) for f in (folder, RESULTS / name)
    )
    assert figures == committed_figures


def cells(path, first):
    """The cells of the first row of a table that begins with this."""
    lines = path.read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_score_of_learning_is_the_mean_of_its_raw_numbers():
    with (RESULTS / "learning" / "runs.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["condition"] == "ABC"]
    last = [
        [float(row["score"]) for row in rows if row["seed"] == seed and int(row["iteration"]) > 70]
        for seed in "012"
    ]
    assert [len(scores) for scores in last] == [10, 10, 10]
    means = [sum(scores) / 10 for scores in last]
    shown = cells(RESULTS / "learning" / "table.md", "ABC")
    assert shown[2] == ", ".join(f"{mean:+.2f}" for mean in means)
    assert shown[3] == f"{sum(means) / 3:+.2f}"


def test_a_score_of_an_agent_is_the_mean_of_its_raw_numbers():
    rows = pd.read_parquet(RESULTS / "agents" / "runs.parquet").query("agent == 'SB3 DQN, MLP'")
    ends = [of_seed.tail(4) for _, of_seed in rows.query("reward == 'shaping'").groupby("seed")]
    assert all(of_seed["episodes"].tolist() == [64] * 4 for of_seed in ends)
    means = np.array([of_seed["score"].mean() for of_seed in ends])
    half = 2.776445 * means.std(ddof=1) / 5**0.5  # Student's t with 4 degrees of freedom
    shown = cells(RESULTS / "agents" / "table.md", "SB3 DQN, MLP")
    assert shown[3] == f"{means.mean():+.2f} ± {half:.2f}"


def test_the_leaderboard_is_that_of_its_rows():
    folder = RESULTS / "suites" / "leaderboard"
    methods = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["methods"]
    page = make_leaderboard(read_rows(folder / "runs.parquet"), methods)
    assert (RESULTS.parents[1] / "docs" / "leaderboard.md").read_text(encoding="utf-8") == page


def test_a_ratio_of_throughput_is_that_of_its_raw_seconds():
    rows = json.loads((RESULTS / "throughput" / "rows.json").read_text())
    (row,) = [row for row in rows if row["case"] == "each at its best settings"]
    seconds = row["detail"]["seconds"]
    ratios = np.array(seconds["trl"]) / np.array(seconds["textgym"])
    shown = cells(RESULTS / "throughput" / "goals.md", "each at its best settings")
    assert shown[2] == f"{np.median(ratios):.3f}"


def test_methods_are_compared_under_the_seeds_that_both_have():
    scores = {
        "sparse": pd.Series([1.0, 2.0, 3.0], index=[0, 1, 2]),
        "dense": pd.Series([2.5, 3.5, 9.0], index=[1, 2, 3]),
        "other": pd.Series([1.0], index=[7]),
    }
    table = [line.split(" | ") for line in compare(scores, "sparse")[2:]]
    assert table[0][3] == "–"
    assert table[1][3] == "+0.50 (+0.50 to +0.50), 2 seeds"
    assert table[1][5].startswith("0.89")  # 8 of 9 pairs
    assert table[2][3] == "–"


def test_the_p_values_of_a_table_are_those_of_all_its_rows_together():
    seeds = np.arange(6)
    noise = np.random.default_rng(0).normal(size=(3, 6))
    scores = {
        "sparse": pd.Series(noise[0], seeds),
        "better": pd.Series(noise[1] + 3.0, seeds),
        "alike": pd.Series(noise[2], seeds),
    }
    table = [line.split(" | ") for line in compare(scores, "sparse")[2:]]
    alone = [ttest_rel(scores[name], scores["sparse"]).pvalue for name in ("better", "alike")]
    assert table[1][4] == f"{2 * alone[0]:.3f}"
    assert table[2][4] == f"{alone[1]:.3f}"


def test_a_table_needs_no_more_than_what_was_measured(tmp_path):
    rows = learning.read_rows(RESULTS / "learning" / "runs.csv", aliases=learning.ALIASES)
    some = rows[rows["condition"].isin(["sparse", "ABC"])]
    table = learning.make_table(some).splitlines()
    assert [line.split(" | ")[0] for line in table[-2:]] == ["| sparse", "| ABC"]
    whole = Path(RESULTS / "learning" / "table.md").read_text(encoding="utf-8")
    assert table[-1] in whole


def test_the_raw_numbers_of_a_benchmark_of_credit_are_all_needed(tmp_path):
    assert fidelity.missing(RESULTS / "credit_fidelity") == []
    shutil.copy(RESULTS / "credit_fidelity" / "gradient.csv", tmp_path)
    assert "cost.csv" in fidelity.missing(tmp_path)
    assert "gradient.csv" not in fidelity.missing(tmp_path)
