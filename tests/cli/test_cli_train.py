"""`textgym train`: its folder, and what is left after an interruption."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.cli.commands import SMALL, flags
from textgym.agents import PPO
from textgym.cli import main


def test_train_writes_its_folder(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["time/total_timesteps"] >= 17 > rows[-2]["time/total_timesteps"]
    config = json.loads((trained / "config.json").read_text())
    assert (config["seed"], config["num_epochs"]) == (3, 1)
    environment = json.loads((trained / "environment.json").read_text())
    assert (environment["credit"], environment["beta"]) == ("uniform", 0.5)
    assert PPO.load(trained / "checkpoint.pt").history == rows


def test_train_prints_paths_as_they_are(models, tmp_path, capsys):
    output = tmp_path / "a [bold] run"
    assert main(["train", *flags(models), *SMALL, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert f"output  {output}\n" in out
    assert f"checkpoint  {output / 'checkpoint.pt'}\n" in out


@pytest.fixture
def interrupted(models, tmp_path, monkeypatch, capsys):
    """Run a training with a Ctrl-C after some iterations; its folder and what it printed."""
    output, learn = tmp_path / "a run", PPO.learn

    def run(iterations):
        def learn_and_stop(self, *args, **kwargs):
            for _ in range(iterations):
                learn(self, 1)
            raise KeyboardInterrupt

        monkeypatch.setattr(PPO, "learn", learn_and_stop)
        assert main(["train", *SMALL, *flags(models), "--output", str(output)]) == 130
        printed = capsys.readouterr()
        assert printed.err == ""
        return output, printed.out

    return run


def test_an_interrupted_training_keeps_its_iterations(interrupted):
    output, _ = interrupted(2)
    assert len(PPO.load(output / "checkpoint.pt").history) == 2


def test_an_interrupted_training_says_where_its_checkpoint_is(interrupted):
    output, out = interrupted(1)
    assert "interrupted" in out
    assert "1 iteration," in out
    assert f"checkpoint  {output / 'checkpoint.pt'}\n" in out


def test_the_printed_command_evaluates_the_checkpoint(interrupted, capsys):
    _, out = interrupted(1)
    line = next(line for line in out.splitlines() if "textgym evaluate" in line)
    program, *command = shlex.split(line.removeprefix("evaluate it"))
    assert program == "textgym"
    assert main([*command, "--episodes", "2"]) == 0
    assert str(PPO.load(command[-1] + "/checkpoint.pt").num_timesteps) in capsys.readouterr().out


def test_an_interruption_before_the_first_iteration_says_so(interrupted):
    output, out = interrupted(0)
    assert "no iteration was finished" in out
    assert f"checkpoint  {output / 'checkpoint.pt'}\n" in out
    assert PPO.load(output / "checkpoint.pt").num_timesteps == 0


def test_training_keeps_freed_memory(models, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("textgym.cli.train.keep_freed_memory", lambda: calls.append(1))
    assert main(["train", *SMALL, *flags(models), "--output", str(tmp_path / "run")]) == 0
    assert calls == [1]
