"""`textgym train`: its folder, and what is left after an interruption."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.cli.commands import ONE_LINE, SMALL, flags
from textgym.agents import PPO, PPOConfig
from textgym.cli import _COMMANDS, main
from textgym.cli.run_folder import locked
from textgym.cli.usage import parse


def test_train_writes_its_folder(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["time/total_timesteps"] >= 17 > rows[-2]["time/total_timesteps"]
    config = json.loads((trained / "config.json").read_text())
    assert (config["seed"], config["num_epochs"]) == (3, 1)
    environment = json.loads((trained / "environment.json").read_text())
    assert (environment["credit"], environment["beta"]) == ("uniform", 0.5)
    assert PPO.load(trained).history == rows


def test_train_prints_paths_as_they_are(models, tmp_path, capsys):
    output = tmp_path / "a [bold] run"
    assert main(["train", *flags(models), *SMALL, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert f"output  {output}\n" in out
    assert f"checkpoint  {output / 'checkpoints'}" in out


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
    assert len(PPO.load(output).history) == 2


def test_an_interrupted_training_says_where_its_checkpoint_is(interrupted):
    output, out = interrupted(1)
    assert "interrupted" in out
    assert "1 iteration," in out
    assert f"checkpoint  {output / 'checkpoints'}" in out


def test_without_undo_an_interrupted_training_names_its_last_checkpoint(
    models, tmp_path, monkeypatch, capsys
):
    iterate = PPO._iterate

    def interrupt_the_second(self, env):
        if len(self.history) == 1:
            raise KeyboardInterrupt
        return iterate(self, env)

    monkeypatch.setattr(PPO, "_iterate", interrupt_the_second)
    more = ["--no-undo", "--save-every", "1", "--output", str(tmp_path)]
    assert main(["train", *SMALL, *flags(models), *more]) == 130
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"go on from the last checkpoint  textgym train --resume {tmp_path}" in printed.out
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert PPO.load(tmp_path).num_timesteps >= 17


def test_the_printed_command_evaluates_the_checkpoint(interrupted, capsys):
    _, out = interrupted(1)
    line = next(line for line in out.splitlines() if "textgym evaluate" in line)
    program, *command = shlex.split(line.removeprefix("evaluate it"))
    assert program == "textgym"
    assert main([*command, "--episodes", "2"]) == 0
    assert str(PPO.load(command[-1]).num_timesteps) in capsys.readouterr().out


def test_an_interruption_before_the_first_iteration_says_so(interrupted):
    output, out = interrupted(0)
    assert "no iteration was finished" in out
    assert f"checkpoint  {output / 'checkpoints'}" in out
    assert PPO.load(output).num_timesteps == 0


def test_training_keeps_freed_memory(models, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("textgym.cli.train.keep_freed_memory", lambda: calls.append(1))
    assert main(["train", *SMALL, *flags(models), "--output", str(tmp_path / "run")]) == 0
    assert calls == [1]


# --- Going on


def weights_and_log(folder):
    policy = PPO.load(folder).policy.state_dict()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return policy, [{k: v for k, v in row.items() if k != "time/seconds"} for row in rows]


def assert_same_run(first, second):
    (policy, log), (other_policy, other_log) = weights_and_log(first), weights_and_log(second)
    assert log == other_log
    assert all(torch.equal(policy[name], other_policy[name]) for name in policy)


def test_resuming_gives_the_unbroken_run(models, tmp_path):
    more = ["--total-timesteps", "40", "--save-every", "1"]
    assert main(["train", *SMALL, *flags(models), *more, "--output", str(tmp_path / "whole")]) == 0
    assert main(["train", *SMALL, *flags(models), "--output", str(tmp_path / "run")]) == 0
    go_on = ["train", "--resume", str(tmp_path / "run"), "--total-timesteps", "40"]
    assert main(go_on) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_goes_on_with_its_own_settings(models, tmp_path):
    small = [*SMALL, *flags(models), "--save-every", "3", "--save-total-limit", "4"]
    assert main(["train", *small, "--output", str(tmp_path)]) == 0
    go_on = ["train", "--resume", str(tmp_path), "--total-timesteps", "40"]
    assert main([*go_on, "--save-total-limit", "5"]) == 0
    config = PPO.load(tmp_path).config
    assert (config.save_every, config.save_total_limit) == (3, 5)
    # So the next --resume has as far to go as this one, and a report tells how far.
    assert json.loads((tmp_path / "environment.json").read_text())["total_timesteps"] == 40


def test_a_default_that_is_asked_for_replaces_the_setting_of_the_run(models, tmp_path):
    default = PPOConfig().save_total_limit
    assert default != 4
    small = [*SMALL, *flags(models), "--save-total-limit", "4"]
    assert main(["train", *small, "--output", str(tmp_path)]) == 0
    go_on = ["train", "--resume", str(tmp_path), "--total-timesteps", "40"]
    assert main([*go_on, "--save-total-limit", str(default)]) == 0
    assert PPO.load(tmp_path).config.save_total_limit == default


@pytest.mark.parametrize("iterations", [0, 1])
def test_an_interrupted_run_names_the_command_that_goes_on(interrupted, monkeypatch, iterations):
    output, out = interrupted(iterations)
    monkeypatch.undo()
    line = next(line for line in out.splitlines() if line.startswith("go on"))
    program, *command = shlex.split(line.removeprefix("go on"))
    assert program == "textgym"
    assert main(command) == 0
    assert PPO.load(output).num_timesteps >= 17  # as many as the interrupted command asked for


def test_the_command_that_goes_on_has_the_flags_that_a_run_does_not_keep(tmp_path):
    words = ["--device", "cuda:1", "--shard", "--wandb", "films", "--samples", "9"]
    command = parse(_COMMANDS, ["train", *words])
    program, *going_on = shlex.split(command.going_on(tmp_path / "a run"))
    assert program == "textgym"
    expected = dataclasses.replace(
        command, resume=str(tmp_path / "a run"), given=command.given | {"resume"}
    )
    assert parse(_COMMANDS, going_on) == expected


def test_auto_starts_and_goes_on_with_one_command(models, tmp_path, capsys):
    command = ["train", *SMALL, *flags(models), "--output", str(tmp_path), "--resume", "auto"]
    assert main(command) == 0
    first = len(PPO.load(tmp_path).history)
    assert main([*command, "--total-timesteps", "40"]) == 0
    assert len(PPO.load(tmp_path).history) > first


def test_auto_without_output_takes_the_newest_run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a"):  # "a" is the newest
        command = ["train", *SMALL, *flags(models), "--output", f"runs/{name}"]
        assert main(command) == 0
    assert main(["train", "--resume", "auto", "--total-timesteps", "40"]) == 0
    assert PPO.load("runs/a").num_timesteps >= 40 > PPO.load("runs/b").num_timesteps


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--credit", "abc"),  # the default, which the run was not started with
        ("--learning-rate", "0.5"),
        ("--max-new-tokens", "9"),
        ("--seed", "8"),
        ("--num-envs", "2"),
        ("--output", "elsewhere"),
    ],
)
def test_a_run_cannot_go_on_as_another(trained, capsys, flag, value):
    before = weights_and_log(trained)[1]
    assert main(["train", "--resume", str(trained), flag, value]) == 2
    assert f"textgym: {flag[2:].replace('-', '_')}=" in capsys.readouterr().err
    assert weights_and_log(trained)[1] == before


@pytest.mark.parametrize("missing", ["environment.json", "checkpoints"])
def test_what_cannot_be_resumed_is_one_clear_line(trained, tmp_path, capsys, missing):
    broken = tmp_path / "run"
    shutil.copytree(trained, broken)
    shutil.rmtree(broken / missing) if missing == "checkpoints" else (broken / missing).unlink()
    assert main(["train", "--resume", str(broken)]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert error.startswith("textgym: resume=")


def test_a_finished_run_says_how_to_go_on(trained, capsys):
    before = weights_and_log(trained)[1]
    assert main(["train", "--resume", str(trained)]) == 0
    assert "--total-timesteps asks for more" in capsys.readouterr().out
    assert weights_and_log(trained)[1] == before


def test_a_finished_run_is_not_overwritten(trained, models, capsys):
    before = weights_and_log(trained)[1]
    assert main(["train", *SMALL, *flags(models), "--output", str(trained)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert weights_and_log(trained)[1] == before


def test_a_second_process_in_the_folder_is_refused(models, tmp_path, capsys):
    with locked(tmp_path / "run"):
        command = ["train", *SMALL, *flags(models), "--output", str(tmp_path / "run")]
        assert main(command) == 2
    assert "another process is training in this folder" in capsys.readouterr().err
    assert main(command) == 0


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    models, tmp_path, capsys, monkeypatch
):
    save, left = PPO.save, 2

    def save_while_there_is_room(self, path):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(PPO, "save", save_while_there_is_room)
    output = tmp_path / "run"
    more = ["--total-timesteps", "60", "--save-every", "1"]
    assert main(["train", *SMALL, *flags(models), *more, "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert ONE_LINE.fullmatch(printed.err)
    assert "No space left" in printed.err
    assert f"textgym train --resume {output}" in printed.out
    assert len(PPO.load(output).history) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_saves_and_names_the_command_that_goes_on(models, tmp_path, name):
    number, output = getattr(signal, name), tmp_path / "run"
    command = [sys.executable, "-m", "textgym", "train", *SMALL, *flags(models)]
    command += ["--total-timesteps", "1000000", "--save-every", "100000", "--output", str(output)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What a shell starts in the background ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            for _ in range(1200):  # until it has learned something
                if (output / "metrics.jsonl").exists() and (
                    output / "metrics.jsonl"
                ).stat().st_size:
                    break
                time.sleep(0.1)
            process.send_signal(number)
            out, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 128 + number, error
    assert error == b""
    assert f"go on  textgym train --resume {output}".encode() in out
    rows = (output / "metrics.jsonl").read_text().splitlines()
    assert len(PPO.load(output).history) == len(rows) > 0
