"""The command line as a whole: help, errors, exit codes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import shlex
import subprocess
import sys

import pytest

from tests.cli.commands import ONE_LINE, SMALL, flags
from textgym.agents import PPOConfig
from textgym.cli import _COMMANDS, main
from textgym.cli.credit import CreditCommand
from textgym.cli.usage import UsageError, one_line, parse


def test_help_names_every_hyperparameter(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(PPOConfig):
        flag = "output" if field.name == "log_dir" else field.name.replace("_", "-")
        assert f"--{flag}" in shown
    for flag in ("credit", "beta", "policy", "reward-model", "tokenizer", "prompts", "num-envs"):
        assert f"--{flag} " in shown
    assert "Learning rate of AdamW" in shown


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], set()),
        (["--learning-rate", "0.5", "--beta=0.8"], {"learning_rate", "beta"}),
        (["--learning_rate", "0.5"], {"learning_rate"}),
        (["--no-undo", "--shard"], {"undo", "shard"}),
        (["--output", "runs/a"], {"output"}),
    ],
)
def test_a_training_knows_which_flags_were_written(words, given):
    assert parse(_COMMANDS, ["train", *words]).given == given


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"textgym {command}" in capsys.readouterr().out


def test_no_command_shows_three_that_work(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = [shlex.split(line) for line in re.findall(r"^  textgym .*$", shown, re.MULTILINE)]
    assert [words[1] for words in lines] == ["credit", "train", "demo"]
    for _, *words in lines:
        parse(_COMMANDS, words)
    assert "docs" in shown


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_that_of_the_package(flag, capsys):
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"textgym {importlib.metadata.version('textgym')}\n"


def test_help_does_not_wait_for_torch():
    program = (
        "import sys; from textgym.cli import main; code = main(['--help']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "evaluate" in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "textgym", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("textgym: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fly"], "fly"),
        (["train", "--lerning-rate", "3"], "did you mean --learning-rate?"),
        (["train", "--lr", "3"], "did you mean --learning-rate?"),
        (["train", "--model", "gpt2"], "did you mean --policy?"),
        (["train", "--target-kl=3"], "did you mean --max-approx-kl?"),
        (["train", "--learning-rate", "x"], "--learning-rate"),
        (["train", "--learning-rate", "-1"], "learning_rate=-1.0"),
        (["train", "--credit", "guess"], "guess"),
        (["train", "--credit", "sparse", "--beta", "1"], "beta=1.0"),
        (["train", "--beta", "7"], "beta=7.0"),
        (["train", "--start", "middle"], "--start"),
        (["train", "--total-timesteps", "0"], "total_timesteps=0"),
        (["train", "--policy", "/nowhere"], "policy='/nowhere'"),
        (["train", "--policy", "no/such"], "policy='no/such'"),
        (["train", "--tokenizer", "/nowhere"], "tokenizer='/nowhere'"),
        (["train", "--reward-model", "/nowhere"], "reward_model='/nowhere'"),
        (["train", "--device", "abacus"], "abacus"),
        (["evaluate", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["evaluate", "--episodes", "0"], "episodes=0"),
        (["evaluate", "--policy", "/nowhere"], "policy='/nowhere'"),
        (["evaluate", "--device", "abacus"], "abacus"),
        (["credit"], "text=''"),
        (["credit", "A film", "--reward-model", "/nowhere"], "reward_model='/nowhere'"),
        (["credit", "A film", "--reward-model", "no/such"], "reward_model='no/such'"),
        (["credit", "A film", "--credit", "guess"], "guess"),
        (["credit", "A film", "--credit", "atention"], "did you mean 'abc'?"),
        (["credit", "A film", "--credit", "no_module:mine"], "no_module"),
        (["demo", "--policy", "/nowhere"], "policy='/nowhere'"),
        (["demo", "--seed", "-1"], "seed=-1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, part, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ONE_LINE.fullmatch(captured.err)
    assert part in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["credit", "A film", "--credit", "abc", "--credit", "sparse"],
        ["credit", "A film", "--credit=abc", "--beta", "1", "--credit=sparse"],
        ["benchmark", "run", "--only", "a", "--only", "b"],
        ["benchmark", "run", "--tasks", "a", "--tasks", "b"],
    ],
)
def test_no_value_is_lost_of_a_flag_that_is_there_twice(words):
    flag = words[2].split("=")[0]
    with pytest.raises(UsageError, match=f"^{flag} is there twice.*textgym {words[0]} --help"):
        parse(_COMMANDS, words)


def test_of_two_single_values_the_last_counts():
    assert parse(_COMMANDS, ["demo", "--seed", "1", "--seed", "2"]).seed == 2


def test_a_text_may_look_like_a_flag_that_is_there():
    words = ["credit", "--credit", "abc", "--", "--credit"]
    assert parse(_COMMANDS, words).text == ("--credit",)


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Unrecognized options ──────╮\n│ Unrecognized options: --sed │\n"
        "│ ─────────────────────────── │\n│ Perhaps you meant:          │\n"
        "│     --seed INT              │\n╰─────────────────────────────╯\n",
        " Unrecognized options        \n ----------------------------\n"
        "  \x1b[1mUnrecognized options: --sed\x1b[0m \n  -------------------------- \n"
        "  Perhaps you meant:         \n      --seed INT             \n",
    ],
)
def test_boxes_with_and_without_unicode_become_one_line(box):
    assert one_line(box) == "Unrecognized options: --sed"


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("--prompts", "missing.jsonl", "missing.jsonl"),
        ("--prompt-column", "nothing", "prompt_column='nothing'"),
        ("--min-new-tokens", "9", "min_new_tokens=9"),
        ("--episodes-per-iteration", "5", "episodes_per_iteration=5"),
    ],
)
def test_bad_settings_of_a_training_are_one_line(flag, value, part, models, capsys):
    assert main(["train", *SMALL, *flags(models | {flag: value})]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert part in error


def test_an_output_that_cannot_be_used_is_one_line(models, trained, capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for output, part in ((trained, "output="), (file, str(file))):
        assert main(["train", *SMALL, *flags(models), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert ONE_LINE.fullmatch(error)
        assert part in error


def test_an_interruption_is_quiet(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(CreditCommand, "run", interrupt)
    assert main(["credit", "A film"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "textgym", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
