"""Weights & Biases: what is handed to the package, and what happens without it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from tests.cli.commands import ONE_LINE, SMALL, flags
from textgym.cli import main


class RecordedRun:
    """Stands for a run of the package."""

    def __init__(self, **settings):
        self.settings, self.rows, self.finished = settings, [], False

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.finished = True


@pytest.fixture
def recorded(monkeypatch):
    """Put a package in the place of wandb that records the runs that it is asked for."""
    runs = []

    def init(**settings):
        runs.append(RecordedRun(**settings))
        return runs[-1]

    class Refused(Exception):
        pass

    package = SimpleNamespace(init=init, Error=Refused)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return runs


def test_the_rows_of_the_log_are_logged_against_tokens(models, tmp_path, recorded):
    command = ["train", *SMALL, *flags(models), "--wandb", "films", "--output", str(tmp_path / "a")]
    assert main(command) == 0
    (run,) = recorded
    log = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [row for _, row in run.rows] == [json.loads(line) for line in log]
    assert [step for step, _ in run.rows] == [row["time/total_timesteps"] for _, row in run.rows]
    assert run.finished
    assert (run.settings["project"], run.settings["name"]) == ("films", "a")
    assert run.settings["config"]["credit"] == "uniform"
    assert run.settings["config"]["num_epochs"] == 1


def test_a_run_that_goes_on_goes_on_there(models, tmp_path, recorded):
    command = ["train", *SMALL, *flags(models), "--wandb", "films", "--output", str(tmp_path / "a")]
    assert main(command) == 0
    resume = ["train", "--resume", str(tmp_path / "a"), "--total-timesteps", "40"]
    assert main([*resume, "--wandb", "films"]) == 0
    first, second = recorded
    assert first.settings["id"] == second.settings["id"]
    assert second.settings["resume"] == "allow"
    assert second.rows[0][0] > first.rows[-1][0]
    assert second.settings["config"] == first.settings["config"] | {"total_timesteps": 40}


def test_nothing_is_imported_unless_asked(models, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    assert main(["train", *SMALL, *flags(models), "--output", str(tmp_path / "a")]) == 0


@pytest.mark.parametrize("project", ["films", "a/b", "", "x" * 129])
def test_without_the_package_or_a_name_it_is_one_line(
    project, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    output = tmp_path / "run"
    assert main(["train", *flags(models), "--wandb", project, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert error.startswith("textgym: wandb=")
    assert ("textgym[wandb]" in error) == (project == "films")
    assert not output.exists()


def test_a_refusal_of_the_package_is_one_line(models, tmp_path, recorded, monkeypatch, capsys):
    package = sys.modules["wandb"]

    def refuse(**settings):
        raise package.Error("No API key configured.")

    monkeypatch.setattr(package, "init", refuse)
    output = tmp_path / "run"
    command = ["train", *SMALL, *flags(models), "--wandb", "films", "--output", str(output)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert "wandb='films': No API key configured: call wandb login" in error
    assert not (output / "checkpoints").exists()


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the package wandb")
def test_the_package_itself_logs_offline(models, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    command = ["train", *SMALL, *flags(models), "--wandb", "films", "--output", str(output)]
    assert main(command) == 0
    assert list(output.glob("wandb/offline-run-*/*.wandb"))
