import dataclasses
import json
import re
import subprocess
import sys

import pytest

from textgym import cli, usage
from textgym.agents import PPO, PPOConfig
from textgym.cli import main
from textgym.credit import CREDIT_ASSIGNERS
from textgym.credit.potentials import POTENTIALS


@pytest.fixture(scope="module")
def models(tmp_path_factory, language_model, classifier, tokenizer):
    """Flags that name tiny models and prompts in folders."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("language_model", language_model), ("reward_model", classifier)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.jsonl").write_text('{"prompt": "This film"}\n{"prompt": "I"}\n')
    return {
        "--policy": str(folder / "language_model"),
        "--reward-model": str(folder / "reward_model"),
        "--prompts": str(folder / "prompts.jsonl"),
    }


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A folder of `textgym train`, with two iterations."""
    output = tmp_path_factory.mktemp("runs") / "run"
    code = main(["train", *flags(models), *SMALL, "--output", str(output)])
    assert code == 0
    return output


SMALL = [
    *("--min-new-tokens", "2", "--max-new-tokens", "4", "--num-envs", "4"),
    *("--episodes-per-iteration", "4", "--num-epochs", "1", "--total-timesteps", "17"),
    *("--credit", "uniform", "--beta", "0.5", "--seed", "3"),
]


def flags(values):
    return [word for flag in values.items() for word in flag]


def test_help_names_every_hyperparameter(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(PPOConfig):
        flag = "output" if field.name == "log_dir" else field.name.replace("_", "-")
        assert f"--{flag}" in shown
    for flag in ("credit", "beta", "policy", "reward-model", "tokenizer", "prompts", "num-envs"):
        assert f"--{flag} " in shown
    assert "Learning rate of AdamW" in shown


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "credit"])
def test_every_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"textgym {command}" in capsys.readouterr().out


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
        ([], "demo, train, evaluate, credit"),
        (["fly"], "fly"),
        (["train", "--lerning-rate", "3"], "did you mean --learning-rate?"),
        (["train", "--learning-rate", "x"], "--learning-rate"),
        (["train", "--learning-rate", "-1"], "learning_rate=-1.0"),
        (["train", "--credit", "guess"], "guess"),
        (["train", "--credit", "sparse", "--beta", "1"], "beta=1.0"),
        (["train", "--beta", "7"], "beta=7.0"),
        (["train", "--total-timesteps", "0"], "total_timesteps=0"),
        (["train", "--policy", "/nowhere"], "policy='/nowhere'"),
        (["train", "--policy", "no/such"], "policy='no/such'"),
        (["train", "--device", "abacus"], "abacus"),
        (["evaluate", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["evaluate", "--episodes", "0"], "episodes=0"),
        (["evaluate", "--policy", "/nowhere"], "policy='/nowhere'"),
        (["credit"], "text=''"),
        (["credit", "A film", "--reward-model", "/nowhere"], "reward_model='/nowhere'"),
        (["credit", "A film", "--reward-model", "no/such"], "reward_model='no/such'"),
        (["credit", "A film", "--credit", "guess"], "guess"),
        (["credit", "A film", "--credit", "atention"], "did you mean 'attention'?"),
        (["credit", "A film", "--credit", "no_module:mine"], "no_module"),
        (["demo", "--policy", "/nowhere"], "policy='/nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, part, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"textgym: [^\n]+\n", captured.err)
    assert part in captured.err
    assert not list(tmp_path.iterdir())


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
    assert usage._one_line(box) == "Unrecognized options: --sed; did you mean --seed?"


def test_bad_prompts_and_folders_are_one_line(models, trained, capsys, tmp_path):
    a_file = tmp_path / "file"
    a_file.touch()
    for changed, part in (
        ({"--prompts": "missing.jsonl"}, "missing.jsonl"),
        ({"--prompt-column": "nothing"}, "prompt_column='nothing'"),
        ({"--output": str(trained)}, "output="),
        ({"--output": str(a_file)}, str(a_file)),
        ({"--min-new-tokens": "9"}, "min_new_tokens=9"),
        ({"--episodes-per-iteration": "5"}, "episodes_per_iteration=5"),
    ):
        assert main(["train", *SMALL, *flags(models | changed)]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"textgym: [^\n]+\n", error)
        assert part in error


def test_an_interruption_is_quiet(monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.CreditCommand, "run", interrupt)
    assert main(["credit", "A film"]) == 130
    assert capsys.readouterr() == ("", "")


# --- credit


def printed_credit(text):
    """The numbers of the table, the score and the sum."""
    cells = re.findall(r"│ +([+-]\d+\.\d+) │", text)
    score, total = (float(re.search(rf"{name} +([+-]\S+)", text)[1]) for name in ("score", "sum"))
    return [float(cell) for cell in cells], score, total


@pytest.mark.parametrize("credit", sorted(CREDIT_ASSIGNERS))
@pytest.mark.parametrize("prompt", [[], ["--prompt", "This film"]])
def test_printed_credits_sum_to_the_score(credit, prompt, models, tokenizer, reward_model, capsys):
    text = "is a quiet wonder."
    arguments = ["--credit", credit, "--reward-model", models["--reward-model"], *prompt]
    arguments += ["--policy", models["--policy"]]
    assert main(["credit", text, *arguments]) == 0
    out = capsys.readouterr().out
    values, score, total = printed_credit(out)
    assert sum(values) == pytest.approx(score, abs=1e-4 * len(values))
    assert total == pytest.approx(score, abs=2e-4)
    completion = f" {text}" if prompt else text
    assert len(values) == len(tokenizer(completion, add_special_tokens=False)["input_ids"])
    assert out.splitlines()[0].rstrip() == ("This film" if prompt else "") + completion


def test_the_list_has_every_method_with_its_paper_and_every_potential(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["credit", "--list"]) == 0
    out = capsys.readouterr().out
    for name in (*CREDIT_ASSIGNERS, *POTENTIALS):
        assert name in out
    for assigner in CREDIT_ASSIGNERS.values():
        assert assigner.paper.split()[-1] in out
        assert all(type(readout).__name__ in out for readout in assigner.readouts)


def test_a_credit_of_ones_own_is_found_by_its_module(models, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from textgym.credit import register_credit_assigner\n"
        '@register_credit_assigner(name="all-first")\n'
        "def all_first(scored):\n"
        "    first = scored.completion_mask & (scored.completion_mask.cumsum(1) == 1)\n"
        "    return first * scored.score[:, None]\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ["--reward-model", models["--reward-model"], "--credit", "mine:all-first"]
    try:
        assert main(["credit", "a quiet wonder", *arguments, "--beta", "1"]) == 0
    finally:
        CREDIT_ASSIGNERS.pop("all-first", None)
    values, score, _ = printed_credit(capsys.readouterr().out)
    assert values == pytest.approx([score, *[0] * (len(values) - 1)])


def test_the_score_is_that_of_the_reward_model(models, tokenizer, reward_model, capsys):
    from textgym.models import Completions

    ids = tokenizer("A film", add_special_tokens=False)["input_ids"]
    expected = reward_model.read(Completions.from_lists([[tokenizer.bos_token_id]], [ids])).score
    assert main(["credit", "A film", "--reward-model", models["--reward-model"]]) == 0
    score = printed_credit(capsys.readouterr().out)[1]
    assert score == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("text", ["", "wonder " * 60])
def test_texts_that_do_not_fit(text, models, capsys):
    assert main(["credit", text, "--reward-model", models["--reward-model"]]) == 2
    assert capsys.readouterr().err.startswith("textgym: text=")


# --- train, evaluate


def test_train_writes_its_folder(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["time/total_timesteps"] >= 17 > rows[-2]["time/total_timesteps"]
    config = json.loads((trained / "config.json").read_text())
    assert (config["seed"], config["num_epochs"]) == (3, 1)
    environment = json.loads((trained / "environment.json").read_text())
    assert (environment["credit"], environment["beta"]) == ("uniform", 0.5)
    assert PPO.load(trained / "checkpoint.pt").history == rows


def test_train_keeps_what_it_has_after_an_interruption(models, tmp_path, monkeypatch, capsys):
    learn = PPO.learn

    def interrupted(self, *args, **kwargs):
        learn(self, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(PPO, "learn", interrupted)
    assert main(["train", *SMALL, *flags(models), "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == ""
    assert len(PPO.load(tmp_path / "run" / "checkpoint.pt").history) == 1


def measured(out, name):
    return float(re.search(rf"^{name} +([+-]?[\d.]+)", out, re.MULTILINE)[1])


def test_evaluate_plays_the_checkpoint_as_it_was_trained(trained, capsys):
    assert main(["evaluate", "--checkpoint", str(trained), "--episodes", "10", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "over 10 episodes" in out
    assert "UniformCredit(beta=0.5" in out
    assert 2 <= measured(out, "length") <= 4
    assert measured(out, "KL") != 0
    assert len(re.findall(r"^ +[+-]\d+\.\d\d  (?:This film|I)", out, re.MULTILINE)) == 4
    again = ["evaluate", "--checkpoint", str(trained / "checkpoint.pt"), "--episodes", "10"]
    assert main([*again, "--seed", "5"]) == 0
    assert capsys.readouterr().out == out
    assert main([*again, "--max-new-tokens", "2", "--credit", "shaping"]) == 0
    out = capsys.readouterr().out
    assert measured(out, "length") == 2
    assert "ShapingCredit" in out


def test_evaluate_an_untrained_policy(models, capsys):
    assert main(["evaluate", *flags(models), "--episodes", "3", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert measured(out, "KL") == 0
    assert "±" in out


def test_the_interval_is_that_of_the_mean():
    import torch

    assert cli._mean_with_interval(torch.tensor([1.0, 3.0])) == "+2.000 ± 1.960"
    assert cli._mean_with_interval(torch.tensor([1.0]), sign="") == "1.000"
