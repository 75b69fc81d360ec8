"""``textgym benchmark``."""

from __future__ import annotations

import sys

import pytest

from tests.cli.commands import ONE_LINE
from textgym.benchmark import SUITES
from textgym.cli import main


def test_list_names_every_suite_and_its_methods(capsys):
    assert main(["benchmark", "list"]) == 0
    shown = capsys.readouterr().out
    for name, suite in SUITES.items():
        assert f"{name}  {suite.question}" in shown
        assert "; ".join(suite.methods) in shown


def test_a_suite_runs_once_and_is_reported(tmp_path, capsys):
    small = ["--seeds", "1", "--iterations", "1", "--fresh", "0", "--only", "sparse"]
    small += ["--tasks", "8-16"]
    command = ["benchmark", "run", "main", *small, "--output", str(tmp_path)]
    assert main(command) == 0
    assert "[1 of 1, 0 s left] 8-16, sparse, 1, float32, 0: score" in capsys.readouterr().out
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "of 1" not in shown
    assert f"page  {tmp_path / 'report.html'}" in shown
    assert (tmp_path / "report.html").exists()
    (tmp_path / "table.md").unlink()
    assert main(["benchmark", "report", "main", "--output", str(tmp_path)]) == 0
    assert "| sparse | 1 |" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["run", "mian"], "suite='mian': must be one of main, published"),
        (["run", "--seeds", "0"], "seeds=0: must be a whole number of at least 1"),
        (["run", "--jobs", "0"], "jobs=0: must be a whole number of at least 1"),
        (["run", "--fresh", "100"], "fresh=100: must be a multiple of 64"),
        (["run", "--only", "GRPO"], "only='GRPO': the suite has sparse"),
        (["run", "--tasks", "planted"], "tasks='planted': the suite has 8-16"),
        (["run", "--methods", "none.py"], "must be a Python file"),
        (["report", "--output", "nowhere"], "has no runs of the suite"),
        (["print"], "invalid choice"),
        (["report", "--tasks", "8-16"], "tasks=('8-16',): only `benchmark run` takes it"),
        (["list", "--seeds", "2"], "seeds=2: only `benchmark run` takes it"),
    ],
)
def test_bad_input_is_one_line_that_names_the_flag(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *flags]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert message in error


def test_credit_of_ones_own_may_be_a_file_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert main(["benchmark", "list"]) == 0
    assert str(tmp_path) in sys.path


def test_a_run_that_fails_is_one_line_too(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(
        "from textgym.benchmark import Method, register_method\n"
        "register_method('bad', Method(credit='no-such-credit'))\n"
    )
    flags = ["--only", "bad", "--seeds", "1", "--iterations", "1", "--output", str(tmp_path)]
    assert main(["benchmark", "run", "main", "--methods", str(own), *flags]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert "1 of 1 runs failed" in error
    assert "no-such-credit" in error
