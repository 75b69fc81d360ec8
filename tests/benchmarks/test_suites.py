"""Suites of the package: their plan, a run, what is measured, and the report."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from reports import tuning
from reports.leaderboard import make_leaderboard
from reports.suites import by_beta, by_length, share_of_mean_curves, share_of_other_seeds
from scipy.stats import ttest_rel
from training.plan import TASKS as SEARCHED

from textgym import demo
from textgym.agents import AGENTS, PPO
from textgym.benchmark import (
    METHODS,
    SUITES,
    TASKS,
    Method,
    Suite,
    find_method,
    find_suite,
    load_methods,
    register_method,
    running,
    sb3,
)
from textgym.benchmark.comparison import compare
from textgym.benchmark.fresh_completions import windows
from textgym.benchmark.frontier import (
    draw_frontier,
    ends_of_families,
    estimate_at_kl,
    frontier_tables,
    scores_at_kl,
)
from textgym.benchmark.gold import gold_scores, judge
from textgym.benchmark.lengths import draw_lengths, mean_length
from textgym.benchmark.measures import (
    gain_kept,
    has_collapsed,
    measure_run,
    score_at_kl,
    score_at_kl_budget,
)
from textgym.benchmark.methods import FRONTIER_KL_COEFS
from textgym.benchmark.page import make_page
from textgym.benchmark.report import (
    _judged_rows,
    draw,
    make_tables,
    measure_all,
    write_report,
)
from textgym.benchmark.running import plan_runs, run_suite
from textgym.benchmark.statistics import Estimate
from textgym.benchmark.storage import only_writer
from textgym.benchmark.tables import markdown_table
from textgym.benchmark.training import hyperparameters, learn, make_envs, train
from textgym.credit import get_credit_assigner
from textgym.errors import InvalidArgumentError, NumericalError
from textgym.reviews import load_reviews

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "tuning"
SMALL = Suite(question="Which?", tasks=("8-16",), methods=("sparse", "ABC"), baseline="sparse")


# --- The plan


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_methods_that_exist(name):
    suite = SUITES[name]
    assert all(method in METHODS for method in suite.methods)
    assert suite.baseline in suite.methods
    assert suite.seeds >= 5


def test_all_methods_of_a_seed_run_before_the_next_seed():
    runs = plan_runs(SMALL, seeds=2, iterations=7)
    assert runs == [("8-16", m, 7, "float32", seed) for seed in (0, 1) for m in ("sparse", "ABC")]
    assert plan_runs(SMALL)[0][2] == TASKS["8-16"].iterations
    assert len(plan_runs(SMALL)) == 20


def test_some_methods_and_tasks_can_be_chosen():
    runs = plan_runs(SUITES["length"], seeds=1, only=("ABC",), tasks=("20-30", "40-60"))
    assert [run[:2] for run in runs] == [("20-30", "ABC"), ("40-60", "ABC")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_credit_assigner(name):
    method = METHODS[name]
    assert get_credit_assigner(method.credit, **method.credit_kwargs).name == method.credit


@pytest.mark.parametrize(
    ("searched", "task"),
    [("short", "8-16"), ("medium", "40-60"), ("long", "140-160"), ("planted", "planted")],
)
def test_tuned_methods_have_the_settings_that_won_the_search(searched, task):
    for name, setting in tuning.chosen(RESULTS, searched).items():
        won = json.loads(setting)
        method = METHODS[name]
        fixed = SEARCHED[searched].methods[name].fixed.get("start", "zero")
        assert method.credit_kwargs.get("start", "zero") == won.pop("start", fixed)
        used = hyperparameters(method, task, 60)
        assert {key: used[key] for key in won} == won


def test_the_demo_has_the_settings_that_won_the_search_at_its_length():
    names = {"sparse": "sparse, λ = 1", "abc": "ABC", "prefix-score": "prefix score"}
    won = tuning.chosen(RESULTS, "medium")
    for method in demo.METHODS:
        setting = {"gae_lambda": 1.0} | json.loads(won[names[method.name]])  # λ = 1 has no choice
        assert {"start": method.start, **method.hyperparameters} == setting


def test_published_methods_share_their_settings():
    published = [m for name, m in METHODS.items() if "(published)" in name]
    settings = [dict(m.hyperparameters) for m in published]
    for setting in settings:
        setting.pop("gae_lambda")
    assert all(setting == settings[0] for setting in settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: find_suite("mian"), "must be one of main"),
        (lambda: find_method("SPARSE"), "register it"),
        (lambda: register_method("ABC", Method()), "take another"),
        (
            lambda: Suite(question="", tasks=("7",), methods=("ABC",), baseline="ABC"),
            "must be one of 8-16",
        ),
        (
            lambda: Suite(question="", tasks=("8-16",), methods=("ABC",), baseline="sparse"),
            "one of the methods",
        ),
        (lambda: load_methods("no_such_file.py"), "must be a Python file"),
        (lambda: Method(agent="popo"), "agent='popo': must be one of ppo, rloo, grpo"),
        (lambda: Method(by_task={"8": {}}), "by_task='8': must be one of 8-16"),
        (lambda: register_method("mine", PPO), "must be a textgym.benchmark.Method"),
    ],
)
def test_bad_names_are_refused(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(SMALL, seeds=0),
        lambda: replace(SMALL, iterations=0),
        lambda: replace(SMALL, tasks=()),
        lambda: replace(TASKS["8-16"], iterations=0),
        lambda: replace(TASKS["8-16"], kl_budget=0.0),
        lambda: Method(num_envs=0),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(make):
    with pytest.raises(InvalidArgumentError, match=r"=(0|0\.0|\(\)): must "):
        make()


def test_every_bundled_agent_can_be_named():
    assert [Method(agent=name).agent_name for name in AGENTS] == list(AGENTS)


def test_a_file_that_registers_nothing_is_refused(tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(InvalidArgumentError, match="must call register_method"):
        load_methods(path)


def test_a_file_that_fails_leaves_no_method_behind(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN + "1 / 0\n")
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="it fails: ZeroDivisionError"):
            load_methods(path)
    assert "mine" not in METHODS


def test_a_file_can_import_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "weights_of_mine.py").write_text("GAMMA = 0.9\n")
    path = tmp_path / "own.py"
    path.write_text(f"from weights_of_mine import GAMMA\n{OWN}".replace("0.9", "GAMMA"))
    assert load_methods(path) == ["mine"]
    assert METHODS.pop("mine").hyperparameters == {"gamma": 0.9}


# --- Runs


def test_a_run_has_a_row_per_iteration_with_fresh_completions_and_samples():
    rows = train(None, 64, "8-16", "ABC", 2, "float32", 0)
    assert rows["iteration"].tolist() == [1, 2]
    assert rows["fresh_score"].notna().all()
    assert rows["fresh_outside"].notna().all()
    assert rows["fresh_gold"].notna().all()
    texts = [json.loads(texts) for texts in rows["fresh_texts"]]
    assert [len(pairs) for pairs in texts] == [64, 64]
    assert [prompt for prompt, _ in texts[0]] == [prompt for prompt, _ in texts[1]]
    (samples,) = map(json.loads, rows["samples"].dropna())
    for sample in samples:
        assert len(sample["pieces"]) == len(sample["credit"])


def test_the_gold_reward_model_knows_reviews_that_it_never_saw():
    texts, labels = windows(load_reviews("held_out"), seed=1)
    scores = gold_scores(texts)
    assert ((scores > 0) == labels).mean() > 0.72
    order = np.argsort(texts)  # The order of a batch changes nothing.
    again = gold_scores([texts[i] for i in order])
    np.testing.assert_allclose(again, scores[order], atol=1e-3)


def test_rows_with_texts_are_judged_once():
    runs = run_of("ABC", 0, range(3))
    assert judge(runs) is runs
    pairs = [["I", " loved this wonderful film"], ["The", " film is a terrible bore"]]
    runs["fresh_texts"] = [None, json.dumps(pairs), json.dumps(pairs[:1])]
    judged = judge(runs)
    gold = judged["fresh_gold"].tolist()
    assert np.isnan(gold[0])
    expected = gold_scores(["I loved this wonderful film", "The film is a terrible bore"])
    assert gold[1:] == pytest.approx([expected.mean(), expected[0]], abs=1e-3)
    assert judge(judged) is judged


@pytest.mark.parametrize("name", ["SB3's PPO, prefix score", "SB3's A2C", "SB3's MaskablePPO"])
def test_an_agent_of_sb3_is_measured_like_the_others(name):
    rows = train(None, 64, "8-16", name, 1, "float32", 0)
    assert rows["timesteps"].tolist() == [16 * 12]  # of 8 to 16 tokens
    assert np.isfinite(rows[["score", "kl", "entropy", "fresh_score", "fresh_kl"]]).all(axis=None)
    # Its tokens come from the policy that is measured: it has moved after the first update.
    assert rows["fresh_kl"].iloc[0] > 1e-5
    assert rows["fresh_length"].between(8, 16).all()
    assert rows["samples"].notna().all()


def test_seconds_and_alarm_of_sb3_are_those_of_the_bundled_agents(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sb3.time, "perf_counter", lambda: clock[0])

    def measure(row):
        clock[0] += 100.0

    history = []
    recorder = sb3._make_recorder(history, measure, num_actions=4096)
    logged = {"train/entropy_loss": -4.0, "rollout/kl": 40.0}
    recorder.model = SimpleNamespace(logger=SimpleNamespace(name_to_value=logged))
    recorder.locals = {"infos": [{"score": 1.0, "completion_tokens": 12}]}
    for kl in (40.0, 50.0, 70.0):  # on average 40, 45, 53; 12 tokens of 4 nats have 48
        recorder._on_rollout_start()
        logged["rollout/kl"] = kl
        recorder._on_step()
        recorder._on_rollout_end()
        clock[0] += 1.0
    with pytest.warns(RuntimeWarning, match="more than the reference"):
        recorder._on_training_end()
    assert [row["time/seconds"] for row in history] == [1.0, 2.0, 3.0]
    assert [row["train/alarm"] for row in history] == [0.0, 0.0, 1.0]


def test_sb3_runs_on_the_cpu_unless_the_settings_say_otherwise(monkeypatch):
    class Begun(Exception):
        pass

    def learner(*args, **arguments):
        raise Begun(arguments["device"])

    monkeypatch.setattr(sb3, "_algorithm", lambda name: (learner, None, None))
    envs, settings = make_envs(TASKS["8-16"], 4, None), {"dtype": None, "kl_coef": 0.1}
    with pytest.raises(Begun, match="cpu"):
        sb3.SB3Agent("PPO", TASKS["8-16"], envs, settings)
    with pytest.raises(Begun, match="cuda"):
        sb3.SB3Agent("PPO", TASKS["8-16"], envs, settings | {"device": "cuda"})


def test_methods_start_from_the_same_policy_and_prompts():
    runs = [train(None, 0, "8-16", name, 1, "float32", 3) for name in ("sparse", "prefix score")]
    # Rows of the first iteration come from before the first update.
    assert runs[0]["score"].tolist() == runs[1]["score"].tolist()
    assert runs[0]["kl"].tolist() == [0.0]


OWN = """
from textgym.agents import PPO
from textgym.benchmark import Method, register_method

def make(task, envs, settings):
    return PPO(task.policy, envs, episodes_per_iteration=16, **settings)

register_method("mine", Method(agent=make, credit="uniform", hyperparameters={"gamma": 0.9}))
"""


def test_a_method_of_ones_own_enters_by_a_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    only = {"only": ("mine",), "methods_file": path, "num_fresh": 0}
    rows = run_suite(SMALL, tmp_path / "runs", seeds=1, iterations=1, **only)
    assert rows["method"].unique().tolist() == ["mine"]
    meta = json.loads((tmp_path / "runs" / "meta.json").read_text())
    assert meta["methods"]["mine"]["agent"] == "make"
    assert meta["methods"]["mine"]["hyperparameters"] == {"gamma": 0.9}
    assert METHODS.pop("mine").agent is not PPO


def test_only_methods_and_tasks_of_the_suite_can_be_chosen(tmp_path):
    with pytest.raises(InvalidArgumentError, match="the suite has sparse; ABC"):
        run_suite(SMALL, tmp_path, only=("GRPO",))
    with pytest.raises(InvalidArgumentError, match="the suite has 8-16"):
        run_suite(SMALL, tmp_path, tasks=("planted",))


def test_a_folder_holds_runs_of_one_length_and_dtype(tmp_path):
    run_of("ABC", 0, range(20)).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(InvalidArgumentError, match="20 iterations in float32 on 8-16"):
        run_suite(SMALL, tmp_path, iterations=30)
    with pytest.raises(InvalidArgumentError, match="take another"):
        run_suite(SMALL, tmp_path, iterations=20, dtype="bfloat16")


def stored_runs(folder, method="mine", credit="uniform", **hyperparameters):
    """A folder as :func:`run_suite` leaves it after a run of the method, without running it."""
    run_of(method, 0, [0.0]).to_parquet(folder / "runs.parquet")
    settings = {"agent": "ppo", "credit": credit, "credit_kwargs": {}, "by_task": {}}
    meta = {"methods": {method: {**settings, "hyperparameters": hyperparameters}}}
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def mine():
    register_method("mine", Method(credit="uniform", hyperparameters={"gamma": 0.9}))
    yield replace(SMALL, methods=("sparse", "mine"))
    METHODS.pop("mine")


def test_a_folder_holds_runs_of_one_setting_of_a_method(tmp_path, mine):
    stored_runs(tmp_path, gamma=0.8)
    with pytest.raises(InvalidArgumentError, match="runs of mine on 8-16 with other settings"):
        run_suite(mine, tmp_path, seeds=1, iterations=1, only=("mine",))


def test_runs_of_the_same_setting_are_continued(tmp_path, mine):
    stored_runs(tmp_path, gamma=0.9)
    rows = run_suite(mine, tmp_path, seeds=1, iterations=1, only=("mine",))
    assert rows["score"].tolist() == [0.0]  # Nothing is missing, so nothing has run.


@pytest.mark.parametrize(("task", "is_refused"), [("140-160", False), ("8-16", True)])
def test_only_the_settings_of_the_stored_tasks_must_be_the_same(tmp_path, mine, task, is_refused):
    stored_runs(tmp_path, gamma=0.9)
    METHODS["mine"] = replace(METHODS["mine"], by_task={task: {"gamma": 0.8}})
    kind = {"seeds": 1, "iterations": 1, "only": ("mine",)}
    if is_refused:
        with pytest.raises(InvalidArgumentError, match="runs of mine on 8-16 with other settings"):
            run_suite(mine, tmp_path, **kind)
    else:
        assert run_suite(mine, tmp_path, **kind)["score"].tolist() == [0.0]


def test_the_settings_of_stored_runs_are_kept_when_their_method_leaves_the_suite(tmp_path):
    stored_runs(tmp_path, gamma=0.9)
    kept = json.loads((tmp_path / "meta.json").read_text())["methods"]["mine"]
    run_suite(SMALL, tmp_path, seeds=1, iterations=1, only=("sparse",), num_fresh=0)
    methods = json.loads((tmp_path / "meta.json").read_text())["methods"]
    assert list(methods) == ["sparse", "ABC", "mine"]
    assert methods["mine"] == kept


def test_the_definitions_of_stored_tasks_are_kept_when_another_suite_runs(tmp_path, monkeypatch):
    stored_runs(tmp_path, method="sparse")
    meta = {"tasks": {"8-16": {"policy": "of then"}, "planted": {}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    told = []
    monkeypatch.setattr(running, "run_missing", lambda *args, **kwargs: told.append(args[4]))
    run_suite(replace(SMALL, tasks=("planted",)), tmp_path)
    assert told[0]["tasks"]["8-16"] == {"policy": "of then"}
    assert told[0]["tasks"]["planted"]["policy"] == "planted"
    with pytest.raises(InvalidArgumentError, match="as an earlier version defined it"):
        run_suite(SMALL, tmp_path, iterations=1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seeds": 0}, "seeds=0: must be a whole number"),
        ({"iterations": 0}, "iterations=0: must be a whole number"),
        ({"jobs": 0}, "jobs=0: must be a whole number"),
        ({"dtype": "float16"}, "dtype='float16': must be"),
        ({"num_fresh": 100}, "num_fresh=100: must be a multiple of 64"),
        ({"only": "sparse"}, "only='sparse': must be a list"),
        ({"tasks": "8-16"}, "tasks='8-16': must be a list"),
        ({"reuse": [Path("nowhere")]}, "has no runs.parquet"),
    ],
)
def test_arguments_that_no_run_can_have_are_refused(asked, message, tmp_path):
    with pytest.raises(InvalidArgumentError, match=message):
        run_suite(SMALL, tmp_path, **asked)


def test_a_suite_with_a_method_that_nobody_registered_is_refused(tmp_path):
    unknown = replace(SMALL, methods=("sparse", "spare"))
    with pytest.raises(InvalidArgumentError, match="method='spare': must be one of sparse; "):
        run_suite(unknown, tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of sparse reward, made here."""
    folder = tmp_path_factory.mktemp("made")
    run_suite(SMALL, folder, seeds=1, iterations=1, only=("sparse",), num_fresh=0)
    return folder


def test_runs_that_suites_share_are_made_once(tmp_path, made, capsys):
    other = replace(SMALL, methods=("ABC", "sparse"), baseline="ABC")
    kind = {"seeds": 1, "iterations": 1, "only": ("sparse",), "num_fresh": 0, "reuse": [made]}
    rows = run_suite(other, tmp_path, **kind)
    printed = capsys.readouterr().out
    assert printed == f"1 runs taken from {made}\n"  # Nothing was missing, so nothing has run.
    pd.testing.assert_frame_equal(rows, pd.read_parquet(made / "runs.parquet"))
    run_suite(other, tmp_path, **kind)
    assert capsys.readouterr().out == f"0 runs taken from {made}\n"
    # What was taken can be taken further.
    run_suite(SMALL, tmp_path / "third", **(kind | {"reuse": [tmp_path]}))
    assert capsys.readouterr().out == f"1 runs taken from {tmp_path}\n"


@pytest.mark.parametrize(
    ("asked", "method", "task"),
    [
        ({"num_fresh": 64}, {}, {}),
        ({"iterations": 2}, {}, {}),
        ({"dtype": "bfloat16"}, {}, {}),
        ({"only": ("ABC",)}, {}, {}),
        ({}, {"hyperparameters": {"gamma": 0.8}}, {}),
        ({}, {"by_task": {"8-16": {"gamma": 0.8}}}, {}),
        ({}, {}, {"policy": "planted"}),
    ],
)
def test_runs_of_another_kind_are_not_taken(tmp_path, made, monkeypatch, asked, method, task):
    monkeypatch.setitem(METHODS, "sparse", replace(METHODS["sparse"], **method))
    monkeypatch.setitem(TASKS, "8-16", replace(TASKS["8-16"], **task))
    kind = {"seeds": 1, "iterations": 1, "only": ("sparse",), "num_fresh": 0, "reuse": [made]}
    with pytest.raises(InvalidArgumentError, match="has no run that this suite asks for"):
        run_suite(SMALL, tmp_path, **(kind | asked))
    assert not list(tmp_path.iterdir())


def test_another_color_or_kl_budget_does_not_make_another_run(tmp_path, made, monkeypatch):
    monkeypatch.setitem(METHODS, "sparse", replace(METHODS["sparse"], color="#123456"))
    monkeypatch.setitem(TASKS, "8-16", replace(TASKS["8-16"], kl_budget=9.0, iterations=7))
    kind = {"seeds": 1, "iterations": 1, "only": ("sparse",), "num_fresh": 0, "reuse": [made]}
    assert len(run_suite(SMALL, tmp_path, **kind)) == 1


ROW = {
    "time/iteration": 1,
    "time/total_timesteps": 192,
    "time/seconds": 0.5,
    "rollout/score_mean": 1.0,
    "rollout/kl_exact": 2.0,
    "rollout/episode_length": 12.0,
}


def learn_from(row):
    """What :func:`learn` makes of an agent with this row."""
    agent = SimpleNamespace(history=[row], learn=lambda timesteps, callback: callback(row))
    return learn(agent, SimpleNamespace(unwrapped=SimpleNamespace(max_new_tokens=16)), 1)


def test_an_agent_need_not_log_entropy_and_alarm():
    rows = learn_from(ROW)
    assert rows["score"].tolist() == [1.0]
    assert rows[["entropy", "alarm"]].isna().all(axis=None)


def test_an_agent_without_a_column_is_refused_in_its_first_iteration():
    row = {name: value for name, value in ROW.items() if name != "rollout/kl_exact"}
    with pytest.raises(InvalidArgumentError, match="need rollout/kl_exact in every row"):
        learn_from(row)


@pytest.mark.parametrize("column", ["rollout/score_mean", "rollout/kl_exact"])
def test_a_run_without_a_number_fails(column):
    with pytest.raises(NumericalError, match=f"{column}=nan in iteration 1: "):
        learn_from(ROW | {column: np.nan})


def test_an_agent_of_few_rows_shows_as_many_samples(monkeypatch):
    monkeypatch.setitem(METHODS, "sparse", replace(METHODS["sparse"], num_envs=2))
    rows = train(None, 0, "8-16", "sparse", 1, "float32", 0)
    assert len(json.loads(rows["samples"].iloc[-1])) == 2


# --- Measures and report


def run_of(method, seed, scores, kl=5.0, task="8-16"):
    iterations = np.arange(1, len(scores) + 1)
    return pd.DataFrame(
        {
            "task": task,
            "method": method,
            "iterations": len(scores),
            "dtype": "float32",
            "seed": seed,
            "iteration": iterations,
            "timesteps": 100 * iterations,
            "seconds": 2.0 * iterations,
            "score": np.asarray(scores, dtype=float),
            "kl": kl,
            "samples": None,
        }
    )


def test_a_run_is_measured_where_it_reaches_the_goal():
    measures = measure_run(run_of("ABC", 0, range(20)), kl_budget=25.0, goal=10.0)
    # The mean of 8 to 12 is 10: in the 13th iteration.
    assert (measures["iterations"], measures["tokens"], measures["seconds"]) == (13, 1300, 26)
    assert measures["area"] == pytest.approx(9.5)
    assert measures["final"] == pytest.approx(14.5)
    assert measures["best"] == 17.0
    assert np.isnan(measure_run(run_of("ABC", 0, range(20)), 25.0, goal=18.0)["iterations"])


@pytest.mark.parametrize(("score", "counted"), [(2.0, 1.0), (-2.0, -2.0)])
def test_a_kl_above_the_budget_makes_no_score_better(score, counted):
    run = run_of("ABC", 0, [score] * 20, kl=50.0)  # twice the budget
    assert score_at_kl_budget(run, 25.0, window=5) == pytest.approx(counted)


def test_a_kl_that_is_lost_is_not_averaged_away():
    run = run_of("ABC", 0, [2.0] * 20, kl=[5.0] * 10 + [np.nan] * 10)
    assert np.isnan(score_at_kl_budget(run, 25.0, window=5))


def test_a_run_that_loses_most_of_its_gain_has_collapsed():
    up, down = list(np.linspace(0, 4, 40)), list(np.linspace(4, 0, 20))
    assert has_collapsed(run_of("ABC", 0, up + down + [0.0] * 10))
    assert not has_collapsed(run_of("ABC", 0, up))
    assert not has_collapsed(run_of("ABC", 0, [*up, *[3.0] * 10]))


def test_the_share_of_the_gain_that_is_kept():
    # The first score, a mean over five, is 1, the best is 11, and the end is 4.
    run = run_of("ABC", 0, [1.0] * 10 + [11.0] * 10 + [4.0] * 10)
    assert gain_kept(run) == pytest.approx(0.3)
    assert np.isnan(gain_kept(run_of("ABC", 0, [1.0] * 20)))


def test_the_score_at_a_kl_lies_between_the_iterations_on_either_side():
    run = run_of("ABC", 0, 2 * np.arange(20.0), kl=np.arange(20.0))
    assert score_at_kl(run, 5.25) == pytest.approx(10.5)  # The score is twice the KL.
    assert score_at_kl(run, 0.0) == 0.0
    assert score_at_kl(run, 17.0) == pytest.approx(34.0)  # The mean of the last five.
    assert np.isnan(score_at_kl(run, 17.1))


def test_the_table_at_equal_kl_says_how_many_runs_get_there():
    near = run_of("sparse", 0, range(30), kl=np.linspace(0, 6, 30))
    far = run_of("sparse", 1, range(30), kl=np.linspace(0, 12, 30))
    runs = pd.concat([near, far], ignore_index=True)
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    (line,) = [
        line
        for line in text[text.index("where the KL first") :].splitlines()
        if line.startswith("| sparse |")
    ][:1]
    _, _, five, ten, *_ = (cell.strip() for cell in line.split("|"))
    expected = [score_at_kl(run, 5.0) for run in (near, far)]
    assert five == f"{np.mean(expected):+.2f}"
    assert ten == f"{score_at_kl(far, 10.0):+.2f} (1)"


def test_the_score_at_equal_kl_is_interpolated_seed_by_seed(tmp_path):
    names = [f"ABC, KL {kl:g}" for kl in FRONTIER_KL_COEFS]
    runs = []
    for seed in (0, 1):
        for name, kl in zip(names, (40.0, 20.0, 10.0), strict=True):
            run = run_of(name, seed, [0.0] * 12)
            last = run.index[-1]
            run.loc[last, ["fresh_kl", "fresh_score"]] = [kl, kl / 10 + seed]
            runs.append(run)
    ends = ends_of_families(pd.concat([*runs, run_of("sparse", 0, [0.0] * 12)], ignore_index=True))
    assert set(ends["family"]) == {"ABC"}
    assert scores_at_kl(ends, 15.0).tolist() == [1.5, 2.5]
    assert scores_at_kl(ends, 9.0).empty
    assert scores_at_kl(ends, 41.0).empty
    without_the_low = ends[(ends["seed"] == 1) | (ends["fresh_kl"] > 15.0)]
    assert scores_at_kl(without_the_low, 15.0).index.tolist() == [1]
    assert estimate_at_kl(without_the_low, 15.0) == "+2.50, 1 of 2 seeds"
    table = "\n".join(frontier_tables(ends, levels=(30.0, 50.0)))
    assert "| ABC | +3.50 (+3.00 to +4.00) | – |" in table
    draw_frontier(ends, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 0


def test_the_share_of_iterations_is_drawn_against_the_length(tmp_path):
    slow, fast = np.linspace(0, 2, 40), np.minimum(np.linspace(0, 4, 40), 2)
    runs = [
        run_of(method, 0, scores, task=task)
        for task in ("8-16", "40-60")
        for method, scores in (("sparse", slow), ("ABC", fast))
    ]
    measured = measure_all(pd.concat(runs, ignore_index=True), "sparse")
    assert [mean_length(task) for task in ("8-16", "40-60", "planted")] == [12, 50, None]
    assert draw_lengths(measured, "sparse", tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").stat().st_size > 0
    assert not draw_lengths(measured[measured["task"] == "8-16"], "sparse", tmp_path / "no.png")


def test_a_bound_that_misses_the_value_by_rounding_is_drawn(tmp_path, monkeypatch):
    beside = Estimate(1.0, 1.0 + 1e-12, 1.0 - 1e-12)
    monkeypatch.setattr("textgym.benchmark.lengths.stratified_bootstrap", lambda share: beside)
    measured = pd.DataFrame({"task": ["8-16", "40-60"], "method": "ABC", "share": 1.0})
    assert draw_lengths(measured, "sparse", tmp_path / "lengths.png")


def runs_of_two_methods():
    sparse = [run_of("sparse", seed, np.linspace(0, 2, 40)) for seed in (0, 1)]
    fast = [run_of("ABC", seed, np.minimum(np.linspace(0, 4, 40), 2)) for seed in (0, 1)]
    return pd.concat([*sparse, *fast], ignore_index=True)


def test_shares_are_of_the_iterations_that_the_baseline_needs():
    measured = measure_all(runs_of_two_methods(), "sparse").set_index(["method", "seed"])
    assert measured.loc[("sparse", 0), "share"] == 1.0
    # Sparse's best is the mean of its last five; the other has it when five are that high.
    reached = measured.loc[("ABC", 0), "iterations"]
    assert measured.loc[("ABC", 0), "share"] == reached / 40
    assert 20 < reached < 25


def test_a_run_that_never_gets_there_counts_with_its_whole_length():
    runs = pd.concat([run_of("sparse", 0, range(30)), run_of("ABC", 0, [0.0] * 30)])
    measured = measure_all(runs, "sparse").set_index("method")
    assert measured.loc["ABC", "share"] == 1.0
    assert np.isnan(measured.loc["ABC", "iterations"])


def test_the_table_of_stability_counts_the_runs_with_an_alarm():
    once, never = (run_of("sparse", seed, range(30)).assign(alarm=0.0) for seed in (0, 1))
    once.loc[7, "alarm"] = 1.0
    runs = pd.concat([once, never, run_of("ABC", 0, range(30))])  # ABC logs no alarms.
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    rows = {row[0]: row[1:] for row in rows_of(text.partition("## Stability")[2])[:2]}
    assert [rows[method][-1] for method in ("sparse", "ABC")] == ["1 of 2", "–"]


@pytest.mark.parametrize(("fast", "shown"), [(2, "9"), (1, "–")])
def test_runs_that_do_not_get_there_count_in_the_medians_of_the_speed(fast, shown):
    sparse = [run_of("sparse", seed, np.arange(30)) for seed in range(3)]
    # The mean of five is 27, the best of sparse reward, in the 9th iteration or never.
    abc = [run_of("ABC", s, [0.0] * 4 + [27.0 if s < fast else 0.0] * 26) for s in range(3)]
    runs = pd.concat([*sparse, *abc])
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    (line,) = [row for row in rows_of(text[text.index("# To the best") :]) if row[0] == "ABC"][:1]
    assert line[2:4] == [f"{fast} of 3", shown]


def test_tables_compare_with_the_baseline():
    runs = runs_of_two_methods()
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    mean = np.minimum(np.linspace(0, 4, 40), 2).mean()  # of linspace(0, 2, 40): 1
    same = [f"{value:+.2f} ({value:+.2f} to {value:+.2f})" for value in (mean, mean - 1)]
    assert f"| ABC | 2 | {same[0]} | {same[1]} | <0.001 | 1.00" in text
    assert text.index("| sparse |") < text.index("| ABC |")


def test_a_difference_on_some_of_the_seeds_says_on_how_many():
    sparse, abc = pd.Series([0.0, 0.0]), pd.Series([0.5, 0.5, 7.0])
    rows = {row[0]: row[3] for row in rows_of("\n".join(compare({"s": sparse, "ABC": abc}, "s")))}
    assert rows["ABC"] == "+0.50 (+0.50 to +0.50), 2 seeds"
    rows = rows_of("\n".join(compare({"s": sparse, "ABC": abc[:2]}, "s")))
    assert rows[1][3] == "+0.50 (+0.50 to +0.50)"


def test_tables_say_how_long_training_took():
    runs = pd.concat(run_of(m, seed, [1.0] * 40) for m in ("sparse", "ABC") for seed in range(3))
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    assert "6 runs of 40 iterations. Training them took 8 min of one core" in text  # 6 x 80 s


def test_a_suite_whose_baseline_has_not_run_is_still_reported():
    runs = run_of("ABC", 0, range(30))
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    assert "The baseline, sparse, has not run yet." in text


def test_the_page_needs_no_other_file_and_shows_texts_as_they_are(tmp_path):
    runs = runs_of_two_methods()
    sample = {"prompt": "a <b>", "pieces": ["<script>", " x"], "credit": [1.0, -0.5], "score": 2.0}
    runs.loc[runs.index[-1], "samples"] = json.dumps([sample])
    runs.to_parquet(tmp_path / "runs.parquet")
    write_report(tmp_path, SMALL)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "credit -0.5000, share 33%" in page
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert "<td>+1.00 (+1.00 to +1.00)</td>" in page


def test_the_page_shows_the_same_prompts_through_training():
    runs = runs_of_two_methods()
    runs["fresh_texts"] = None
    for iteration, kl, text in ((20, 4.0, " was <fine>"), (40, 31.0, " was great great")):
        row = runs.index[(runs["method"] == "ABC") & (runs["iteration"] == iteration)][0]
        runs.loc[row, ["fresh_texts", "fresh_kl", "fresh_score", "fresh_gold"]] = [
            json.dumps([["The film", text]]),
            kl,
            1.0,
            -0.25,
        ]
    page = make_page(runs, "text", {}, "Which?")
    assert "iteration 20: KL 4, score +1.00, gold -0.25" in page
    assert '<span class="prompt">The film</span> was &lt;fine&gt;' in page
    assert page.index("KL 4") < page.index("KL 31") < page.index("great great")


def test_a_page_without_samples_has_no_heading_for_them():
    runs = runs_of_two_methods()
    assert "Completions at the end" not in make_page(runs, "text", {}, "Which?")


def test_a_report_on_the_runs_of_another_suite_is_refused(tmp_path):
    run_of("ABC", 0, range(9)).to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(InvalidArgumentError, match="has runs of ABC, and this suite has other"):
        write_report(tmp_path, SUITES["published"])


def test_a_report_judges_the_rows_that_are_there_when_it_stores_them(tmp_path, monkeypatch):
    path, pairs = tmp_path / "runs.parquet", json.dumps([["The film", " was fine"]])
    run_of("ABC", 0, [1.0]).assign(fresh_texts=pairs).to_parquet(path)

    @contextmanager
    def after_another_process(folder):
        both = [pd.read_parquet(path), run_of("ABC", 1, [2.0])]
        pd.concat(both, ignore_index=True).to_parquet(path)
        yield

    monkeypatch.setattr("textgym.benchmark.report.only_writer", after_another_process)
    assert _judged_rows(path)["seed"].tolist() == [0, 1]
    assert pd.read_parquet(path)["fresh_gold"].notna().tolist() == [True, False]
    with only_writer(tmp_path):  # Nothing is left to store.
        assert len(_judged_rows(path)) == 2


def test_a_report_needs_runs(tmp_path):
    with pytest.raises(InvalidArgumentError, match="textgym benchmark run makes them"):
        write_report(tmp_path, SMALL)


def leaderboard_of(areas):
    """The page, and its rows, for runs whose scores are level: an area per method and seed."""
    runs = pd.concat(
        run_of(name, seed, [area] * 20).assign(fresh_gold=area + 1)
        for name, of_seeds in areas.items()
        for seed, area in enumerate(of_seeds)
    )
    page = make_leaderboard(runs, {name: {"agent": "ppo", "credit": "uniform"} for name in areas})
    return page, rows_of(page)


def test_the_leaderboard_ranks_by_the_area_under_the_curve():
    page, rows = leaderboard_of({"sparse": (1, 1), "ABC": (3, 3), "mine": (2, 2)})
    assert [row[:2] for row in rows] == [["1", "ABC"], ["2", "mine"], ["3", "sparse"]]
    assert [row[5] for row in rows] == [f"+{area}.00 (+{area}.00 to +{area}.00)" for area in "321"]
    assert [row[10] for row in rows] == ["+4.00", "+3.00", "+2.00"]
    assert page.count("Not run yet.") == 2


def test_the_leaderboard_shows_the_gold_score_of_the_end_or_none():
    runs = pd.concat([run_of("sparse", 0, [1.0] * 20), run_of("ABC", 0, [2.0] * 20)])
    methods = {name: {"agent": "ppo", "credit": "uniform"} for name in ("sparse", "ABC")}
    assert [row[10] for row in rows_of(make_leaderboard(runs, methods))] == ["–", "–"]
    gold = np.where((runs["iteration"] == 10) | (runs["method"] == "ABC"), 1.5, np.nan)
    judged = runs.assign(fresh_gold=gold)
    assert [row[10] for row in rows_of(make_leaderboard(judged, methods))] == ["+1.50", "–"]


def test_the_leaderboard_says_whether_seeds_separate_an_entry_from_the_first():
    first, near, far = (3.0, 2.0, 4.0, 3.0), (2.9, 1.9, 4.1, 2.9), (1.0, 0.1, 2.0, 0.9)
    _, rows = leaderboard_of({"sparse": far, "near": near, "first": first})
    p = [ttest_rel(first, others).pvalue for others in (near, far)]
    assert rows[0][6:8] == ["–", "–"]
    assert [row[6][:5] for row in rows[1:]] == ["-0.05", "-2.00"]
    assert [row[7] for row in rows[1:]] == [f"{p[0]:.3f}", "<0.001"]
    assert 2 * p[1] < 0.001 < p[0]  # Holm doubles the smaller of two.


def rows_of(text):
    """Cells of a Markdown table's rows, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_each_beta_is_shown_as_a_ratio_to_sparse_reward():
    scores = {name: 1.0 + number for number, name in enumerate(SUITES["beta"].methods)}
    runs = pd.concat(run_of(name, seed, [scores[name]] * 9) for name in scores for seed in (0, 1))
    text = by_beta(runs)
    assert "a line through each seed: +10.00 (+10.00 to +10.00)" in text
    rows = {row[0]: row[1:] for row in rows_of(text)}
    assert list(rows) == ["0", *(f"0.{tenth}" for tenth in range(1, 10)), "1"]
    assert rows["0.1"] == ["0.98", "2.00", "+2.00 (+2.00 to +2.00)"]  # 7.79 over 7.94; 2 over 1
    assert rows["0.5"][:2] == ["1.07", "6.00"]


def test_the_authors_share_is_counted_on_the_curves_of_means():
    # Each seed of sparse reward peaks at 2, but at another time: their mean peaks at 1.5.
    sparse = [run_of("sparse", 0, [0, 2, 1, 0]), run_of("sparse", 1, [0, 0, 2, 2])]
    abc = [run_of("ABC", seed, [0, 1.6, 1.6, 1.6]) for seed in (0, 1)]
    runs = pd.concat([*sparse, *abc])
    assert share_of_mean_curves(runs, "ABC", "sparse") == pytest.approx(2 / 3)
    assert share_of_mean_curves(runs, "sparse", "ABC") is None  # 1.5 is below 1.6.


def test_a_seed_of_sparse_reward_is_held_against_the_best_of_the_other():
    low, high = np.minimum(np.arange(20.0), 9), np.minimum(np.arange(20.0), 12)
    runs = pd.concat([run_of("sparse", 0, low), run_of("sparse", 1, high)])
    # The mean of five is 9 in the 14th iteration, 12 in the 17th. The higher one is at 9 in the
    # 12th, when it has 7 to 11; the lower one is never at 12, and counts with all 20.
    assert share_of_other_seeds(runs, "sparse") == pytest.approx((12 / 14 + 20 / 17) / 2)
    assert np.isnan(share_of_other_seeds(runs[runs["seed"] == 0], "sparse"))


def test_each_length_is_compared_with_sparse_reward_at_that_length():
    ends = {("8-16", "sparse"): 1.0, ("8-16", "ABC"): 3.0, ("140-160", "sparse"): 2.0}
    ends[("140-160", "ABC")] = 1.0
    runs = pd.concat(
        run_of(method, 0, np.linspace(0, end, 40), task=task)
        for (task, method), end in ends.items()
    )
    rows = {tuple(row[:2]): row[2:] for row in rows_of(by_length(runs))}
    assert rows[("8-16", "ABC")][:3] == ["1", "–", "3.00"]
    assert rows[("140-160", "ABC")][1:3] == ["1.80", "0.50"]  # 11.26 over 6.27; 1 over 2
    assert rows[("140-160", "sparse")][4:6] == ["–", "–"]  # one seed: no other to compare with
    assert float(rows[("8-16", "ABC")][4].rstrip("%")) < 50
    assert float(rows[("8-16", "ABC")][5].rstrip("%")) < 50
    # It does not get there; seed by seed it counts with all its iterations.
    assert rows[("140-160", "ABC")][4:6] == ["–", "100%"]


def test_abc_is_held_against_its_controls_at_every_length():
    levels = {"sparse": (0.0, 1.0), "ABC": (1.0, 2.0), "uniform": (0.75, 1.65)}
    runs = pd.concat(
        run_of(method, seed, [level * scale] * 20, task=task)
        for task, scale in (("40-60", 2.0), ("140-160", 1.0))
        for method, of_seeds in levels.items()
        for seed, level in enumerate(of_seeds)
    )
    rows = [row for row in rows_of(by_length(runs)) if row[0] == "uniform"]
    assert [row[1] for row in rows] == ["2", "2"]
    # The mean of .25 and .35, at 40 to 60 tokens twice that.
    for row, wanted in zip(rows, ("+0.60", "+0.30"), strict=True):
        assert all(cell.startswith(wanted) for cell in row[2:])


def test_a_method_that_is_as_fast_as_sparse_reward_shows_what_sparse_reward_shows():
    low, high = np.minimum(np.arange(20.0), 9), np.minimum(np.arange(20.0), 12)
    runs = pd.concat(run_of("sparse", seed, one) for seed, one in enumerate((low, high)))
    (row,) = rows_of(by_length(runs))
    assert row[6:8] == ["–", f"{share_of_other_seeds(runs, 'sparse'):.0%}"]


def test_methods_of_one_color_are_drawn_with_different_dashes(tmp_path, monkeypatch):
    """The suite "beta" has more methods than matplotlib has colours, and families share one."""
    figures = []
    monkeypatch.setattr(
        "textgym.benchmark.report.save", lambda figure, path: figures.append(figure)
    )
    for suite in ("beta", "frontier"):
        names = SUITES[suite].methods
        draw(pd.concat(run_of(name, 0, range(9)) for name in names), "8-16", tmp_path / "c.png")
        for panel in figures[-1].axes:
            lines = [line for line in panel.get_lines() if len(line.get_xdata()) == 9]
            looks = {(line.get_color(), line.get_linestyle()) for line in lines}
            assert len(lines) == len(looks) == len(names)


def test_the_figure_says_how_many_seeds_each_method_has(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "textgym.benchmark.report.save", lambda figure, path: titles.append(figure.get_suptitle())
    )
    sparse = [run_of("sparse", seed, range(9)) for seed in range(3)]
    draw(pd.concat([*sparse, run_of("ABC", 0, range(9))]), "8-16", tmp_path / "c.png")
    draw(pd.concat(sparse), "8-16", tmp_path / "c.png")
    assert [title.split(".")[0] for title in titles] == ["8-16: 1 to 3 seeds", "8-16: 3 seeds"]


def test_a_family_of_ones_own_is_drawn_in_one_color(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "textgym.benchmark.frontier.save", lambda figure, path: figures.append(figure)
    )
    ends = pd.DataFrame(
        {
            "family": ["mine", "mine", "ABC"],  # No method is called "mine".
            "method": ["mine, KL 0.02", "mine, KL 0.04", "ABC, KL 0.02"],
            "seed": 0,
            "fresh_kl": [10.0, 20.0, 15.0],
            "fresh_score": [1.0, 2.0, 1.5],
        }
    )
    draw_frontier(ends, tmp_path / "frontier.png")
    (axes,) = figures[0].axes
    dots, means, *others = (line.get_color() for line in axes.get_lines())
    assert dots == means
    assert means not in others


def test_the_table_at_equal_kl_counts_the_completions_it_is_made_of():
    texts = json.dumps([["The film", " was fine"]] * 64)
    columns = {"family": "ABC", "seed": [0, 0], "fresh_kl": [10.0, 40.0], "fresh_score": [1.0, 2.0]}
    ends = pd.DataFrame({**columns, "fresh_texts": texts})
    assert frontier_tables(ends)[0].startswith("| score of 64 fresh completions at |")


def test_a_seed_that_the_baseline_has_not_run_has_no_goal_to_miss():
    runs = pd.concat(
        [run_of("sparse", 0, range(30)), *(run_of("ABC", seed, range(30)) for seed in (0, 1, 2))]
    )
    text = make_tables(runs, measure_all(runs, "sparse"), SMALL)
    (line,) = [row for row in rows_of(text[text.index("# To the best") :]) if row[0] == "ABC"][:1]
    assert line[1:4] == ["100%", "1 of 1", "30"]


def test_a_folder_holds_runs_with_as_many_fresh_completions(tmp_path, made):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with pytest.raises(InvalidArgumentError, match="have 0; take another folder"):
        run_suite(SMALL, tmp_path, seeds=1, iterations=1, only=("ABC",), num_fresh=64)


def test_settings_that_cannot_be_stored_are_refused_before_anything_runs(tmp_path, mine):
    unstorable = replace(METHODS["mine"], hyperparameters={"gamma": np.float32(0.9)})
    METHODS["mine"] = unstorable
    with pytest.raises(InvalidArgumentError, match="mine"):
        run_suite(mine, tmp_path, seeds=1, iterations=1, only=("mine",), num_fresh=0)
    assert not (tmp_path / "runs.parquet").exists()


def test_an_agent_made_with_other_keyword_arguments_has_another_name():
    narrow, wide = (Method(agent=partial(stored_runs, width=width)) for width in (8, 16))
    assert narrow.agent_name == "stored_runs(width=8)"
    assert wide.agent_name == "stored_runs(width=16)"


class Maker:
    def __call__(self, task, envs, settings, scorer=None):
        raise NotImplementedError


def test_the_name_of_an_agent_is_the_same_in_every_process():
    assert Method(agent=Maker()).agent_name == "Maker"
    with_a_scorer = Method(agent=partial(Maker(), scorer=Maker()))
    assert with_a_scorer.agent_name == f"Maker(scorer=<{__name__}.Maker object>)"


def test_a_bar_in_the_name_of_a_method_stays_in_its_cell():
    page = (
        MarkdownIt("commonmark")
        .enable("table")
        .render("\n".join(markdown_table(["method", "score"], [["ABC|mine", "1"]])))
    )
    assert re.findall("<td>(.*)</td>", page) == ["ABC|mine", "1"]
