"""Benchmarks can be stopped at any time and continued."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from counted_runs import run, started

from textgym.benchmark import runner, storage
from textgym.benchmark.circumstances import commit, commit_of_code, describe
from textgym.benchmark.runner import run_missing
from textgym.benchmark.storage import only_writer, read_rows, write_rows
from textgym.errors import InvalidArgumentError, MissingDependencyError

KEYS = ("condition", "seed")
TODO = [(condition, seed) for condition in ("b", "a") for seed in (0, 1)]


def run_all(folder, jobs=1, name="runs.csv", **arguments):
    return run_missing(
        partial(run, folder),
        TODO,
        KEYS,
        folder / name,
        {"command": "test"},
        order="iteration",
        jobs=jobs,
        **arguments,
    )


def test_after_a_kill_only_what_is_not_stored_is_run_again(tmp_path):
    (tmp_path / "a 0").touch()  # This run waits.
    code = f"import sys; sys.path[:0] = {sys.path!r}\n"
    code += "from pathlib import Path\nfrom test_runner import run_all\n"
    code += f"if __name__ == '__main__': run_all(Path({str(tmp_path)!r}))\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 120
        while "a 0" not in started(tmp_path) or len(read_rows(tmp_path / "runs.csv")) < 4:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert started(tmp_path) == ["b 0", "b 1", "a 0"]

    (tmp_path / "a 0").unlink()
    rows = run_all(tmp_path)
    assert started(tmp_path) == ["b 0", "b 1", "a 0", "a 0", "a 1"]
    expected = [
        (condition, seed, iteration, score)
        for condition in ("a", "b")
        for seed in (0, 1)
        for iteration, score in ((1, -seed), (2, seed + 0.25))
    ]
    assert rows.columns[:4].tolist() == ["condition", "seed", "commit", "iteration"]
    for table in (rows, pd.read_csv(tmp_path / "runs.csv")):
        found = table[["condition", "seed", "iteration", "score"]]
        assert list(found.itertuples(index=False, name=None)) == expected
    assert set(rows["commit"].str.removesuffix("-dirty")) == {commit()}
    assert set(rows["threads"]) == {1}


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
@pytest.mark.parametrize("digits", ["814e319", "0123456"])
def test_a_commit_that_looks_like_a_number_stays_text(digits, name, tmp_path):
    write_rows(pd.DataFrame({"commit": [digits], "score": [0.5]}), tmp_path / name)
    assert read_rows(tmp_path / name).to_dict("list") == {"commit": [digits], "score": [0.5]}


def test_a_folder_refuses_runs_that_have_something_else_in_common(tmp_path):
    run_all(tmp_path, shared={"steps": 5})
    assert json.loads((tmp_path / "meta.json").read_text())["steps"] == 5
    with pytest.raises(InvalidArgumentError, match=r"steps=6: .*have 5; take another folder"):
        run_all(tmp_path, shared={"steps": 6})
    run_all(tmp_path, shared={"steps": 5})
    assert len(started(tmp_path)) == len(TODO)  # Nothing has run again.


def test_what_an_older_folder_does_not_tell_was_as_it_was_then(tmp_path):
    run_all(tmp_path)
    with pytest.raises(InvalidArgumentError, match="have bfloat16; take another folder"):
        run_all(tmp_path, shared={"dtype": "float32"}, untold={"dtype": "bfloat16"})
    run_all(tmp_path, shared={"dtype": "bfloat16"}, untold={"dtype": "bfloat16"})


def test_a_run_that_fails_leaves_the_others_stored_and_is_tried_again(tmp_path):
    (tmp_path / "fail b 1").touch()
    with pytest.raises(ExceptionGroup, match="1 of 4 runs failed") as failure:
        run_all(tmp_path, jobs=2, name="runs.parquet")
    (error,) = failure.value.exceptions
    assert error.__notes__[-1] == "in the run b, 1"
    (tmp_path / "fail b 1").unlink()
    before = started(tmp_path)
    assert sorted(before) == ["a 0", "a 1", "b 0", "b 1"]
    rows = run_all(tmp_path, name="runs.parquet")
    assert started(tmp_path)[4:] == ["b 1"]
    assert sorted(set(zip(rows["condition"], rows["seed"], strict=True))) == sorted(TODO)


def test_a_process_that_is_killed_fails_only_the_runs_that_were_going_on(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"kill b {seed}").touch()
    with pytest.raises(ExceptionGroup, match="2 of 4 runs failed") as failure:
        run_all(tmp_path, jobs=2)
    notes = sorted(error.__notes__ for error in failure.value.exceptions)
    assert notes == [["in the run b, 0"], ["in the run b, 1"]]
    assert all("process was killed" in str(error) for error in failure.value.exceptions)
    rows = read_rows(tmp_path / "runs.csv")
    assert set(zip(rows["condition"], rows["seed"], strict=True)) == {("a", 0), ("a", 1)}


def test_each_process_has_a_core_of_its_own_where_there_are_enough(tmp_path):
    available = len(os.sched_getaffinity(0))
    rows = run_all(tmp_path, jobs=min(2, available))
    assert all("," not in str(cores) for cores in rows["cores"])
    more = run_all(tmp_path, jobs=available + 1, name="more.csv")
    assert {len(str(cores).split(",")) for cores in more["cores"]} == {available}


def test_ray_runs_what_is_missing_and_reports_what_fails(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    # Ray's workers import the module of the runs.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    (tmp_path / "fail b 1").touch()
    try:
        with pytest.raises(ExceptionGroup, match="1 of 4 runs failed") as failure:
            run_all(tmp_path, jobs=2, engine="ray")
        assert "no luck" in str(failure.value.exceptions[0])
        (tmp_path / "fail b 1").unlink()
        rows = run_all(tmp_path, jobs=2, engine="ray")
    finally:
        ray.shutdown()
    assert sorted(started(tmp_path)) == ["a 0", "a 1", "b 0", "b 1", "b 1"]
    assert set(rows["threads"]) == {1}


def test_ray_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"textgym\[ray\]"):
        run_all(tmp_path, engine="ray")


def test_what_is_stored_under_an_earlier_label_is_not_run_again(tmp_path):
    stored = pd.DataFrame(
        [("old", seed, 1, 0.5) for seed in (0, 1)], columns=[*KEYS, "iteration", "score"]
    )
    stored = pd.concat([stored, stored.replace("old", "b")])
    write_rows(stored, tmp_path / "runs.csv")
    rows = run_all(tmp_path, aliases={"condition": {"old": "a"}})
    assert started(tmp_path) == []
    assert sorted(set(rows["condition"])) == ["a", "b"]


def test_meta_stands_beside_the_rows(tmp_path):
    run_all(tmp_path)
    assert json.loads((tmp_path / "meta.json").read_text()) == {"command": "test"}


@pytest.fixture
def here(monkeypatch):
    """Runs take place in this process."""
    monkeypatch.setattr(
        runner, "_in_processes", lambda run, missing, jobs: ((one, run(*one)) for one in missing)
    )


def test_a_kill_between_two_writes_leaves_no_rows_without_their_settings(
    tmp_path, here, monkeypatch
):
    written = []

    def once(path, write):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path)

    monkeypatch.setattr(storage, "_replace", once)
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path)
    assert [path.name for path in written] == ["meta.json"]


def test_meta_tells_the_day_of_the_last_run(tmp_path, here):
    began = {"finished": "2020-01-01"}
    days = [date.today().isoformat()]
    run_missing(partial(run, tmp_path), TODO, KEYS, tmp_path / "runs.csv", began, order="iteration")
    days.append(date.today().isoformat())
    assert json.loads((tmp_path / "meta.json").read_text())["finished"] in days


def test_a_folder_takes_one_writer_at_a_time(tmp_path, here):
    with only_writer(tmp_path), pytest.raises(InvalidArgumentError, match="another process"):
        run_all(tmp_path)
    assert len(run_all(tmp_path)) == 8


def test_bad_arguments_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(InvalidArgumentError, match="jobs=0"):
        run_all(tmp_path, jobs=0)
    with pytest.raises(InvalidArgumentError, match="engine='rey'"):
        run_all(tmp_path, engine="rey")
    with pytest.raises(InvalidArgumentError, match="one value for each"):
        run_missing(run, [("a",)], KEYS, tmp_path / "runs.csv", {}, order="iteration")
    with pytest.raises(InvalidArgumentError, match=r"\.csv or \.parquet"):
        write_rows(pd.DataFrame({"a": [1]}), tmp_path / "rows.txt")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    write_rows(pd.DataFrame({"a": [1]}), path)

    def stop(self, new, **arguments):
        Path(new).write_text("a\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", stop)
    with pytest.raises(KeyboardInterrupt):
        write_rows(pd.DataFrame({"a": [1, 2]}), path)
    assert read_rows(path)["a"].tolist() == [1]


def test_the_command_can_be_given_to_a_shell_again(monkeypatch):
    command = ["textgym", "benchmark", "run", "main", "--only", "ABC, β = 1", "sparse"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/textgym", *command[1:]])
    assert shlex.split(describe()["command"]) == command


@pytest.mark.parametrize("broken", [{"PATH": ""}, {"GIT_DIR": "/nowhere"}])
def test_where_git_is_missing_or_refuses_the_commit_is_unknown(broken, monkeypatch):
    for name, value in broken.items():
        monkeypatch.setenv(name, value)
    assert commit_of_code() == f"textgym {version('textgym')}, commit unknown"


def test_circumstances_name_command_commit_machine_and_versions():
    circumstances = describe("numpy", "pandas")
    assert circumstances["commit"].startswith(commit())
    assert isinstance(circumstances["bfloat16_instructions"], bool)
    assert isinstance(circumstances["bfloat16_is_faster"], bool)
    assert circumstances["versions"]["pandas"] == pd.__version__
    assert circumstances["command"].startswith("python ")
