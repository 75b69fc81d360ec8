"""Every flag of every command: words that are no value, values out of range, wrong names.

The flags are found in the dataclasses of the commands, so a new one is tried without a line here.
Whatever gets as far as the work of its command was accepted.
"""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Literal, get_origin

import pytest

import textgym.agents.agent
import textgym.benchmark.running
import textgym.demo.run
import textgym.reward_training
from tests.bad_input.outcomes import refusals, refused
from tests.bad_input.values import kinds
from textgym.agents import PPO
from textgym.cli import _COMMANDS, main
from textgym.cli.run_folder import SETTINGS, RunSettings
from textgym.cli.usage import flags_of
from textgym.errors import TextgymError

AREA = "flags"
POSITIONAL = {
    "benchmark": ["run"],
    "credit": ["A film"],
    "report": ["a_run"],
    "train-reward": ["pairs.jsonl"],
}
FREE = {
    ("credit", "prompt"): "any text can come before the text",
    ("benchmark", "ray"): "a switch",
    ("credit", "list"): "a switch",
}
"""Flags without a wrong value, and why."""
ACCEPTED = {
    ("train", "wandb"): {"no such thing": "a project that does not exist is made"},
    ("benchmark", "only"): {"nothing behind the flag": "no method is left out, as by default"},
    ("benchmark", "tasks"): {"nothing behind the flag": "no task is left out, as by default"},
    ("benchmark", "reuse"): {"nothing behind the flag": "no run is taken, as by default"},
    ("benchmark", "output"): {"": "an empty path is the current folder"},
}
"""Words that are right to accept, and why, by command and flag."""


class Refused(TextgymError):
    """What the command line printed."""


class WorkBegan(BaseException):
    """The command accepted everything that it was given."""


def begin(*args, **kwargs):
    raise WorkBegan


@pytest.fixture(autouse=True)
def no_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pairs = [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("a_file").touch()
    Path("a_run").mkdir()
    Path("a_run/config.json").write_text("{}")
    Path("a_run/metrics.jsonl").touch()
    monkeypatch.setattr(textgym.agents.agent, "LanguageModelPolicy", begin)
    monkeypatch.setattr(textgym.agents, "collect_episodes", begin)
    monkeypatch.setattr(textgym.demo.run, "_train", begin)
    monkeypatch.setattr(textgym.benchmark.running, "run_missing", begin)
    monkeypatch.setattr(textgym.reward_training, "train_reward_model", begin)
    monkeypatch.setattr(textgym.models.RewardModel, "read", begin)


def run(*words):
    """Run a command; its line of complaint becomes an error, and its work is not done."""
    printed, complaint = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(complaint):
            code = main([*words])
    except WorkBegan:
        return
    lines = [line for line in complaint.getvalue().splitlines() if line.startswith("textgym: ")]
    if code == 2 and len(lines) == 1:
        raise Refused(lines[0])
    assert code == 0, (code, complaint.getvalue())


FLAGS = [
    pytest.param(command, name, hint, id=f"{command}-{name}")
    for command, record in _COMMANDS.items()
    for name, hint in flags_of(record).items()
]


def bad_words(name, hint):
    """Words that no flag with this annotation can take."""
    parts = kinds(hint)
    words: list[str] = []
    if int in parts:
        words += ["x", "", "1.5", "nan", "1e3", "-1", "ten", "--"]
        words += ["9" * 400] if name == "seed" else []
    if float in parts:
        words += ["x", "", "nan", "inf", "-inf", "-1", "1,5", "1e999"]
    if bool in parts:
        words += ["maybe"]
    if any(get_origin(one) is Literal for one in parts):
        words += ["nonsense", "", "NONE!"]
    if name == "output":
        words += ["", "a\0b", "x" * 5000, "a_file"]
    elif parts & {str, Path} or any(get_origin(one) is tuple for one in parts):
        words += ["", "/no/such/place", "no such thing", "no-such-owner/no-such-name", "x" * 5000]
    return words


@pytest.mark.parametrize(("command", "name", "hint"), FLAGS)
def test_bad_words_are_refused_in_one_line(command, name, hint):
    if (command, name) in FREE:
        return
    flag = f"--{name.replace('_', '-')}"
    words = [command, *POSITIONAL.get(command, [])]
    cases = {word[:20]: partial(run, *words, flag, word) for word in bad_words(name, hint)}
    assert cases, "name wrong words, or say in FREE why there are none"
    if bool not in kinds(hint):
        cases["nothing behind the flag"] = partial(run, *words, flag)
    cases["a value too many"] = partial(run, *words, flag, "0", "0")
    refusals(AREA, cases, accepted=ACCEPTED.get((command, name)))


@pytest.mark.parametrize(("command", "name", "hint"), FLAGS)
def test_a_misspelt_flag_is_refused_with_the_right_one(command, name, hint):
    flag = f"--{name.replace('_', '-')}"
    words = [command, *POSITIONAL.get(command, []), flag + flag[-1], "1"]
    assert flag in refused(AREA, partial(run, *words), match="did you mean")


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_flag_of_another_command_is_refused_with_its_owners(command):
    """Two flags of each other command, since the parser takes its time to complain."""
    own = flags_of(_COMMANDS[command])
    for other, record in _COMMANDS.items():
        for name in [name for name in flags_of(record) if name not in own][:2]:
            flag = f"--{name.replace('_', '-')}"
            words = [command, *POSITIONAL.get(command, []), flag, "1"]
            message = refused(AREA, partial(run, *words))
            assert f"did you mean {flag}?" not in message
            assert "did you mean" in message or f"textgym {other}" in message, message


def test_commands_and_words_that_do_not_exist():
    cases = {
        "another command": ["fly"],
        "misspelt": ["trian"],
        "two": ["train", "evaluate"],
        "a word too many": ["evaluate", "run"],
        "an empty text": ["credit", ""],
        "no text": ["credit"],
        "no action": ["benchmark"],
        "another action": ["benchmark", "fly"],
        "another suite": ["benchmark", "run", "no-such-suite"],
        "no run": ["report"],
        "no folder": ["report", "nowhere"],
        "a file for a run": ["report", "a_file"],
        "a folder that is no run": ["report", "."],
        "texts that are no texts": ["credit", "--texts", "pairs.jsonl"],
        "no data": ["train-reward"],
        "other data": ["train-reward", "no.jsonl"],
        "a folder": ["train-reward", "."],
        "too few pairs": ["train-reward", "pairs.jsonl", "--limit", "1"],
        "a vocabulary without reviews": ["train", "--policy", "planted"],
        "the same in the demo": ["demo", "--policy", "planted"],
        "the same in an evaluation": ["evaluate", "--policy", "planted"],
        "lengths out of order": ["train", "--min-new-tokens", "9", "--max-new-tokens", "8"],
        "too long": ["train", "--max-new-tokens", "100000"],
        "minibatches too large": ["train", "--minibatch-size", "17"],
        "episodes that do not fit": ["train", "--num-envs", "5"],
        "beta of sparse": ["train", "--credit", "sparse", "--beta", "1"],
        "a text too long": ["credit", "film " * 5000],
    }
    refusals(AREA, {label: partial(run, *words) for label, words in cases.items()})


@pytest.mark.parametrize("command", ["train", "demo", "evaluate"])
def test_a_policy_with_other_words_is_blamed_for_the_prompts(command):
    refused(AREA, partial(run, command, "--policy", "planted"), match="policy='planted'")


def written():
    """What `textgym train` writes into environment.json."""
    RunSettings().write(Path())
    return json.loads(Path(SETTINGS).read_text())


@pytest.fixture(scope="module")
def run_folder(language_model, envs, tmp_path_factory):
    """The folder of a run with a checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    settings = {"episodes_per_iteration": 2, "minibatch_size": 2, "log_dir": folder}
    PPO(language_model, envs, **settings).save_numbered()
    return folder


def test_a_damaged_environment_json_is_refused(run_folder):
    good = written()
    shutil.copytree(run_folder, ".", dirs_exist_ok=True)
    damaged = {
        "empty": b"",
        "cut": json.dumps(good).encode()[:40],
        "a list": b"[]",
        "a number": b"7",
        "words": b"I was here",
        "binary": bytes(range(256)),
        "UTF-16": json.dumps(good).encode("utf-16"),
    }
    for name in good:
        damaged[f"without {name}"] = json.dumps(
            {k: v for k, v in good.items() if k != name}
        ).encode()
        for label, value in {"list": [], "dict": {}, "number": 1.5, "flag": True}.items():
            damaged[f"{name} is a {label}"] = json.dumps(good | {name: value}).encode()
    damaged["one more"] = json.dumps(good | {"colour": "red"}).encode()

    def evaluate(contents):
        Path(SETTINGS).write_bytes(contents)
        run("evaluate", "--checkpoint", ".")

    del damaged["beta is a number"]
    refusals("checkpoints", {label: partial(evaluate, text) for label, text in damaged.items()})


def test_settings_are_read_as_they_were_written():
    RunSettings(beta=1, start="prompt", credit="uniform").write(Path())
    assert RunSettings.read(Path(), "resume") == RunSettings(
        beta=1, start="prompt", credit="uniform"
    )
