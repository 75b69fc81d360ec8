"""The search for settings, and what is measured of the policies that it finds."""

from __future__ import annotations

import json
import math
from functools import cache, partial

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import tuning
from gymnasium.vector import AutoresetMode
from harness.halving import Rung, best_settings, halve
from reports import frontier
from reports import tuning as report
from training import study
from training.plan import ABLATED, TASKS, UNTRAINED, VARIANTS

from textgym.agents import PPO
from textgym.benchmark import fresh_completions
from textgym.benchmark.fresh_completions import FreshCompletions, distinct_2
from textgym.benchmark.measures import score_at_kl_budget
from textgym.benchmark.storage import write_rows
from textgym.reviews import load_reviews

# --- The criterion and the search


def test_an_iteration_above_the_kl_budget_counts_its_share_of_the_score():
    run = pd.DataFrame({"score": [1.0, 2.0, 3.0], "kl": [0.0, 20.0, 60.0]})
    # Trailing means of two: 0, 10, 40. Only the last is above 20, by a factor of 2.
    assert score_at_kl_budget(run, budget=20.0, window=2) == pytest.approx((1 + 2 + 1.5) / 3)


def test_within_the_budget_the_criterion_is_the_mean_score():
    run = pd.DataFrame({"score": [-1.0, 4.0], "kl": [0.0, 5.0]})
    assert score_at_kl_budget(run, budget=5.0, window=5) == 1.5


def rows_of(keys):
    """Runs whose value is the setting, plus luck: what a seed adds to it."""
    luck = {("7", 0): -5.0, ("3", 0): 2.0}
    return pd.DataFrame(
        [
            {"method": m, "setting": s, "iterations": i, "seed": n, "score": float(s) + extra}
            for m, s, i, n in keys
            for extra in [luck.get((s, n), 0.0)]
        ]
    )


def mean_score(run):
    return float(run["score"].mean())


def test_the_best_settings_are_those_with_the_best_mean_over_seeds():
    runs = rows_of([("a", s, 4, n) for s in ("2", "3", "7") for n in (0, 1)])
    # 2: 2 and 2; 3: 5 and 3; 7: 2 and 7.
    assert best_settings(runs, mean_score, 2) == {"a": ["7", "3"]}


def test_halving_gives_the_better_settings_longer_runs_on_new_seeds():
    asked = []

    def run_all(keys):
        asked.append(keys)
        return rows_of([key for rung in asked for key in rung])

    rungs = [Rung(4, (1,), 2), Rung(8, (2, 3), 1)]
    kept = halve(rungs, {"a": ["1", "2", "3"], "b": ["6", "5", "4"]}, run_all, mean_score)
    assert kept == {"a": ["3"], "b": ["6"]}
    assert sorted(asked[0]) == [
        *(("a", setting, 4, 1) for setting in "123"),
        *(("b", setting, 4, 1) for setting in "456"),
    ]
    assert sorted(asked[1]) == [
        *(("a", setting, 8, seed) for setting in "23" for seed in (2, 3)),
        *(("b", setting, 8, seed) for setting in "56" for seed in (2, 3)),
    ]


def test_the_last_rung_judges_by_all_runs_of_its_length():
    asked = []

    def run_all(keys):
        asked.append(keys)
        return rows_of([key for rung in asked for key in rung])

    # On seed 0, setting 7 is unlucky: 2 against 5. On average over both seeds it is 4.5 against 4.
    rungs = [Rung(8, (0,), 2), Rung(8, (1,), 1)]
    assert halve(rungs, {"a": ["3", "7"]}, run_all, mean_score) == {"a": ["7"]}


def searched():
    """Every method of every task that has a search of its own."""
    return [
        (task, m) for task in TASKS if not TASKS[task].settings_from for m in TASKS[task].methods
    ]


@pytest.mark.parametrize(("task", "method"), searched())
def test_all_methods_search_the_same_learning_rates_and_kl_coefficients(task, method):
    mine, sparse = (
        [json.loads(setting) for setting in study.settings(task, name, 12)]
        for name in (method, "sparse")
    )
    for name in ("learning_rate", "kl_coef"):
        assert [setting[name] for setting in mine] == [setting[name] for setting in sparse]
    for name, values in TASKS[task].methods[method].choices.items():
        assert {setting[name] for setting in mine} == set(values)


@pytest.mark.parametrize(("task", "method"), searched())
def test_all_methods_search_the_same_sizes_of_minibatches(task, method):
    settings = [json.loads(setting) for setting in study.settings(task, method, 12)]
    sparse = [json.loads(setting) for setting in study.settings(task, "sparse", 12)]
    name, _ = TASKS[task].methods[method].minibatches or (None, None)
    if name == "num_minibatches":
        assert [16 // s[name] for s in settings] == [s["minibatch_size"] for s in sparse]
    elif name is not None:
        assert [s[name] for s in settings] == [s["minibatch_size"] for s in sparse]
    else:
        assert method == "SB3's A2C"  # takes one step per rollout


def test_learning_rates_cover_their_range_evenly():
    rates = [
        json.loads(setting)["learning_rate"] for setting in study.settings("short", "sparse", 12)
    ]
    low, high = (math.log(rate) for rate in (5e-5, 8e-4))
    cells = sorted(math.floor(12 * (math.log(r) - low) / (high - low) + 1e-2) for r in rates)
    assert len(set(cells)) >= 11  # one in each, up to the rounding to two digits


def test_recombined_settings_take_every_choice_from_one_of_the_best():
    best = study.settings("short", "prefix score", 12)[:4]
    parents = [json.loads(setting) for setting in best]
    for setting in map(json.loads, study.recombined(best, 8)):
        assert setting.keys() == parents[0].keys()
        for name in ("minibatch_size", "gae_lambda", "start"):
            assert setting[name] in [parent[name] for parent in parents]
        for name in ("learning_rate", "kl_coef"):
            assert min(max(setting[name] / p[name], p[name] / setting[name]) for p in parents) < 1.6


def store_search(folder, task, rates, scores, rung):
    """Runs of one iteration, as the search on a task stores them."""
    rows = [
        {"method": "sparse", "setting": json.dumps({"learning_rate": rate, "kl_coef": 0.04})}
        | {"iterations": rung.iterations, "seed": seed, "iteration": 1, "score": score, "kl": 7.0}
        for seed in rung.seeds
        for rate, score in zip(rates, scores, strict=True)
    ]
    write_rows(pd.DataFrame(rows), folder / task / "search" / "runs.parquet")


@pytest.mark.parametrize(
    ("task", "final"), [("medium", ((60, 101), (60, 102))), ("long", ((50, 101),))]
)
def test_the_search_on_longer_texts_varies_the_learning_rates_of_the_best_on_short_ones(
    task, final, tmp_path, monkeypatch
):
    last_rung = TASKS["short"].rungs[-1]
    store_search(tmp_path, "short", (0.0004, 0.00032, 0.0008), (3.0, 2.0, 1.0), last_rung)
    asked = []

    def run(task, stage, jobs, output, keys, dtype):
        asked.append([(json.loads(s), iterations, seed) for _, s, iterations, seed in keys])
        rows = pd.DataFrame(keys, columns=report.KEYS)
        # The higher the rate, the lower the score.
        scores = [-json.loads(setting)["learning_rate"] for setting in rows["setting"]]
        return rows.assign(iteration=1, score=scores, kl=1.0)

    monkeypatch.setattr(tuning, "_run", run)
    tuning.search(task, ["sparse"], 1, tmp_path, "float32")
    tried, best = asked
    wanted = [0.0004, 0.0002, 0.0001, 5e-5, 2.5e-5, 0.00032, 0.00016, 8e-5, 4e-5, 2e-5]
    assert tried == [({"learning_rate": rate, "kl_coef": 0.04}, 20, 100) for rate in wanted]
    wanted = [(rate, *run) for run in final for rate in (2e-5, 2.5e-5)]
    assert best == [({"learning_rate": rate, "kl_coef": 0.04}, *run) for rate, *run in wanted]


def test_the_table_of_learning_rates_has_a_line_per_setting_and_a_column_per_factor(tmp_path):
    store_search(tmp_path, "short", (0.0004, 0.00032), (3.0, 2.0), TASKS["short"].rungs[-1])
    # The search is not over: two rates of the first setting are missing, and all of the second.
    rates = (0.0004, 0.0002, 0.0001)
    store_search(tmp_path, "long", rates, (0.5, 1.0, 2.0), TASKS["long"].rungs[0])
    *_, header, _, line = report.make_rates_table(tmp_path, "long").strip().splitlines()
    assert header == "| method | setting | × 1 | × 1/2 | × 1/4 | × 1/8 | × 1/16 |"
    setting = "learning_rate 0.0004, kl_coef 0.04"
    assert line == f"| sparse | {setting} | +0.50 (7) | +1.00 (7) | +2.00 (7) | – | – |"
    assert report.finalists(tmp_path, "long") == {}


# --- Runs


def test_a_run_has_a_row_per_iteration_and_measures_fresh_completions(monkeypatch):
    monkeypatch.setattr(fresh_completions, "outside_scorer", small_outside_scorer)
    monkeypatch.setattr(study, "FreshCompletions", partial(FreshCompletions, number=128))
    setting = study.settings("short", "prefix score", 1)[0]
    rows = study.train("short", True, "bfloat16", "prefix score", setting, 2, 100)
    assert rows["iteration"].tolist() == [1, 2]
    assert rows["fresh_score"].notna().tolist() == [True, True]
    start = study.train("short", True, "bfloat16", UNTRAINED, "{}", 0, 0)
    assert start["iteration"].tolist() == [0]
    assert start["fresh_kl"].item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("task", "method"), searched())
def test_every_method_learns_from_every_setting_that_is_searched(task, method):
    for setting in study.settings(task, method, 12)[:2]:
        rows = study.train(task, False, "bfloat16", method, setting, 1, 100)
        assert np.isfinite(rows[["score", "kl", "entropy"]]).all(axis=None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_ablation_runs(variant):
    setting = study.variants(study.settings("short", ABLATED, 1)[0])[variant]
    rows = study.train("short", False, "bfloat16", variant, setting, 1, 100)
    assert np.isfinite(rows[["score", "kl", "entropy"]]).all(axis=None)


def test_a_variant_changes_one_choice():
    base = study.settings("short", ABLATED, 1)[0]
    settings = {name: json.loads(setting) for name, setting in study.variants(base).items()}
    assert settings["as tuned"] == json.loads(base)
    assert settings["8 epochs"] == json.loads(base) | {"num_epochs": 8}
    weight = json.loads(base)["kl_coef"]
    weaker = settings["exact KL, a fifth of the weight"]
    assert weaker == json.loads(base) | {"kl_penalty": "exact", "kl_coef": weight * 0.2}


# --- Fresh completions


@cache
def small_outside_scorer():
    return fresh_completions.fit_outside_scorer(load_reviews("train")[::4])


def test_distinct_2_counts_different_pairs_of_neighbouring_words():
    # good film, film good, good film; a film: 3 different ones among 4.
    assert distinct_2(["good film Good film", "a film", "alone", ""]) == 0.75


def test_the_outside_scorer_knows_held_out_reviews():
    texts, labels = fresh_completions.windows(load_reviews("held_out"), seed=1)
    assert small_outside_scorer().score(texts, labels) > 0.65


def test_windows_are_pieces_of_their_reviews():
    reviews = load_reviews("held_out")[:50]
    texts, labels = fresh_completions.windows(reviews, seed=0)
    for text, label, review in zip(texts, labels, reviews, strict=True):
        assert text in " ".join(review.text.split())
        assert len(text.split()) <= 64
        assert label == review.label


def test_a_policy_is_measured_on_the_same_prompts_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh_completions, "outside_scorer", small_outside_scorer)
    envs = gym.make_vec("ABC-RLHF-v0", 16, autoreset_mode=AutoresetMode.DISABLED)
    agent = PPO("embedded", envs, log_dir=tmp_path)
    fresh = FreshCompletions(envs, 32)
    first = fresh.measure(fresh.write(agent))
    assert fresh.measure(fresh.write(agent)) == first
    assert first["kl"] == pytest.approx(0.0, abs=1e-5)
    assert 0.5 < first["distinct_2"] <= 1.0
    assert 8 <= first["length"] <= 16


# --- Tables

FRESH = ["fresh_score", "fresh_outside", "fresh_kl", "fresh_distinct_2", "fresh_length"]


def run_of(method, seed, scores, kl):
    task = TASKS["short"]
    iterations = np.arange(1, task.iterations + 1)
    rows = pd.DataFrame(
        {
            "method": method,
            "setting": "{}",
            "iterations": task.iterations,
            "seed": seed,
            "iteration": iterations,
            "score": scores(iterations),
            "kl": kl,
        }
    )
    rows.loc[rows["iteration"] == task.iterations, list(FRESH)] = 1.0
    return rows


def cells(text, first, table):
    """The cells of a method's row in the table under this heading."""
    lines = text.split(table)[1].splitlines()
    row = next(line for line in lines if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_tells_when_sparse_reward_is_reached_and_at_which_kl():
    # Sparse climbs to 2 in 80 iterations, the other method twice as fast, and then stays.
    runs = pd.concat(
        [run_of("sparse", seed, lambda i: i / 40, 10.0) for seed in (0, 1)]
        + [run_of("prefix score", seed, lambda i: np.minimum(i / 20, 2.0), 20.0) for seed in (0, 1)]
    )
    text = report.make_test_tables("short", runs)
    assert cells(text, "sparse", "## To the best")[1:3] == ["80, 80", "100% (100% to 100%)"]
    _, iterations, share, reached, kl = cells(text, "prefix score", "## To the best")
    # Means over five: sparse's best is 1.95; the other has it when its last five reach that.
    assert iterations == "42, 42"
    assert share == "52% (52% to 52%)"
    assert (reached, kl) == ("2 of 2", "20")
    # To +1: the mean of 18 to 22, over 20. To +2: sparse gets as far as 1.95.
    _, one, two, holds, fresh = cells(text, "prefix score", "## How fast")
    assert (one, two) == ("22 (KL 20; 2 of 2)", "44 (KL 20; 2 of 2)")
    assert holds == fresh == "1.00; 2 of 2"
    assert cells(text, "sparse", "## How fast")[2] == "– (0 of 2)"


def test_a_run_that_never_gets_there_counts_with_all_of_its_iterations():
    runs = pd.concat(
        [
            run_of("sparse", 0, lambda i: i / 40, 10.0),
            run_of("ABC", 0, lambda i: 0.01 * i, 5.0),
        ]
    )
    row = cells(report.make_test_tables("short", runs), "ABC", "## To the best")
    assert row[1:4] == ["–", "100%", "0 of 1"]


def test_the_frontier_compares_scores_at_equal_kl():
    # A score of KL / 10 for one method, twice that for the other, under any coefficient.
    def end_of(method, seed, factor, kl_coef, kl):
        run = run_of(method, seed, lambda i: 0.0 * i, 0.0)
        run["setting"] = json.dumps({"kl_coef": kl_coef})
        run.loc[run["iteration"] == 80, ["fresh_kl", "fresh_score"]] = kl, factor * kl
        return run

    kl_by_coef = {0.02: 32.0, 0.04: 22.0, 0.08: 12.0}
    runs = pd.concat(
        end_of(method, seed, factor, kl_coef, kl)
        for method, factor in (("RLOO", 0.2), ("sparse", 0.1))
        for seed in (0, 1)
        for kl_coef, kl in kl_by_coef.items()
    )
    text = frontier.make_tables(runs)
    assert text.index("| sparse |") < text.index("| RLOO |")
    at_kl = cells(text, "sparse", "The score at a given KL")
    assert at_kl[1:] == [*(f"+{k:.2f} (+{k:.2f} to +{k:.2f})" for k in (1.5, 2, 2.5, 3)), "–"]
    assert cells(text, "RLOO", "The score at a given KL")[2] == "+4.00 (+4.00 to +4.00)"
