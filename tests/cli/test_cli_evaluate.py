"""`textgym evaluate`: a checkpoint is measured under the settings of its training."""

from __future__ import annotations

import json
import re
import shutil

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.cli.commands import ONE_LINE, SMALL, flags, measured
from textgym.agents import PPO, collect_episodes
from textgym.cli import main
from textgym.cli.evaluate import _mean_with_interval


def evaluate(folder, capsys, *arguments):
    """What the evaluation of a checkpoint prints."""
    assert main(["evaluate", "--checkpoint", str(folder), "--episodes", "10", *arguments]) == 0
    return capsys.readouterr().out


def change_settings(folder, changes, without=()):
    """Edit a run's environment.json."""
    file = folder / "environment.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in without}))


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the training's folder, to change."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="module")
def discounted(models, tmp_path_factory):
    """The folder of a training with its own discount and dtype."""
    output = tmp_path_factory.mktemp("runs") / "discounted"
    arguments = [*SMALL, "--gamma", "0.75", "--dtype", "bfloat16"]
    assert main(["train", *flags(models), *arguments, "--output", str(output)]) == 0
    return output


def test_the_environment_and_the_credit_are_those_of_the_training(trained, capsys):
    out = evaluate(trained, capsys)
    assert "over 10 episodes" in out
    assert "UniformCredit(beta=0.5" in out
    assert 2 <= measured(out, "length") <= 4
    assert measured(out, "KL") != 0
    assert len(re.findall(r"^ +[+-]\d+\.\d\d  (?:This film|I)", out, re.MULTILINE)) == 4


def test_equal_seeds_print_equal_results(trained, capsys):
    out = evaluate(trained, capsys, "--seed", "5")
    assert evaluate(trained, capsys, "--seed", "5") == out
    (checkpoint,) = (trained / "checkpoints").iterdir()
    assert evaluate(checkpoint, capsys, "--seed", "5") == out


def test_flags_override_the_training(trained, capsys):
    out = evaluate(trained, capsys, "--max-new-tokens", "2", "--credit", "shaping")
    assert measured(out, "length") == 2
    assert "ShapingCredit" in out


def test_gamma_is_that_of_the_training(discounted, capsys):
    assert "UniformCredit(beta=0.5, gamma=0.75" in evaluate(discounted, capsys)


def test_the_reward_model_has_the_dtype_of_the_training(discounted, models, capsys):
    agent = PPO.load(discounted)
    expected = {}
    for dtype in ("bfloat16", "float32"):
        envs = gym.make_vec(
            "ABC-RLHF-v0",
            num_envs=10,
            tokenizer=models["--policy"],
            reward_model=models["--reward-model"],
            prompts=models["--prompts"],
            min_new_tokens=2,
            max_new_tokens=4,
            autoreset_mode=AutoresetMode.DISABLED,
            dtype=dtype,
        )
        rollout = collect_episodes(agent.policy, envs, 10, torch.Generator().manual_seed(0))
        expected[dtype] = f"{rollout.scores.mean().item():+.3f}"
    assert expected["bfloat16"] != expected["float32"]  # else the next line would show nothing
    assert f"score   {expected['bfloat16']} ±" in evaluate(discounted, capsys)


def test_beta_is_kept_if_the_credit_is_the_same(trained, capsys):
    assert "beta=0.5" in evaluate(trained, capsys, "--credit", "uniform")
    assert "beta=0.5" not in evaluate(trained, capsys, "--credit", "abc")


def test_start_is_that_of_the_training_if_the_credit_is_the_same(models, tmp_path, capsys):
    arguments = [*flags(models), *SMALL, "--start", "prompt", "--output", str(tmp_path / "run")]
    assert main(["train", *arguments]) == 0
    assert "start='prompt'" in evaluate(tmp_path / "run", capsys)
    assert "start='zero'" in evaluate(tmp_path / "run", capsys, "--start", "zero")
    assert "start='zero'" in evaluate(tmp_path / "run", capsys, "--credit", "abc")


def test_credit_from_the_policy_reads_the_policy_of_the_training(
    models, tokenizer, tmp_path, capsys
):
    tokenizer.save_pretrained(tmp_path / "tokenizer")  # holds no model
    output = tmp_path / "run"
    arguments = [*SMALL, "--credit", "abc-d", "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(["train", *flags(models), *arguments, "--output", str(output)]) == 0
    evaluate(output, capsys)


def test_a_checkpoint_without_settings_takes_the_flags(copy, models, capsys):
    (copy / "environment.json").unlink()
    arguments = [*flags(models), "--min-new-tokens", "3", "--max-new-tokens", "3"]
    out = evaluate(copy, capsys, *arguments)
    assert measured(out, "length") == 3
    assert "AttentionCredit" in out


@pytest.mark.parametrize("settings", ["{", "[]", "{}", '{"tokenizer": "x", "surprise": 1}'])
def test_damaged_settings_are_one_line(settings, copy, capsys):
    (copy / "environment.json").write_text(settings)
    assert main(["evaluate", "--checkpoint", str(copy)]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert "environment.json" in error


def test_a_damaged_checkpoint_names_its_flag(copy, capsys):
    for checkpoint in (copy / "checkpoints").iterdir():
        (checkpoint / "training.safetensors").write_bytes(b"nothing")
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert main(["evaluate", "--checkpoint", str(copy)]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert error.startswith("textgym: checkpoint=")


def test_another_tokenizer_than_that_of_the_policy_is_one_line(trained, capsys):
    arguments = ["--tokenizer", "embedded", "--reward-model", "embedded"]
    assert main(["evaluate", "--checkpoint", str(trained), *arguments]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert error.startswith("textgym: tokenizer='embedded'")


def test_an_untrained_policy_equals_its_reference(models, capsys):
    assert main(["evaluate", *flags(models), "--episodes", "3", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert measured(out, "KL") == 0
    assert "±" in out


def test_evaluation_keeps_freed_memory(trained, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("textgym.cli.evaluate.keep_freed_memory", lambda: calls.append(1))
    evaluate(trained, capsys)
    assert calls == [1]


def test_the_interval_is_that_of_the_mean():
    assert _mean_with_interval(torch.tensor([1.0, 3.0])) == "+2.000 ± 1.960"
    assert _mean_with_interval(torch.tensor([1.0]), sign="") == "1.000"
