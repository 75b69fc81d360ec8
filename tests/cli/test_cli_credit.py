"""`textgym credit`: the printed numbers add up, and the list is complete."""

from __future__ import annotations

import re

import pytest

from textgym.cli import main
from textgym.credit import CREDIT_ASSIGNERS
from textgym.credit.potentials import POTENTIALS
from textgym.models import Completions


def printed_credit(text):
    """The numbers of the table, the score and the sum."""
    cells = re.findall(r"│ +([+-]\d+\.\d+) │", text)
    score, total = (float(re.search(rf"{name} +([+-]\S+)", text)[1]) for name in ("score", "sum"))
    return [float(cell) for cell in cells], score, total


@pytest.mark.parametrize("credit", sorted(CREDIT_ASSIGNERS))
@pytest.mark.parametrize("prompt", [[], ["--prompt", "This film"]])
def test_printed_credits_sum_to_the_score(credit, prompt, models, tokenizer, capsys):
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


def test_credit_measured_from_the_prompt_sums_to_the_difference_of_two_scores(models, capsys):
    arguments = ["--reward-model", models["--reward-model"], "--prompt", "This film"]
    arguments += ["--credit", "uniform"]
    assert main(["credit", "is a quiet wonder.", *arguments, "--start", "prompt"]) == 0
    out = capsys.readouterr().out
    values, score, total = printed_credit(out)
    assert sum(values) == pytest.approx(total, abs=1e-4 * len(values))
    assert "(score - prompt score)" in out
    prefix_score = ["--credit", "prefix-score", "--start"]
    assert main(["credit", "is a quiet wonder.", *arguments, *prefix_score, "prompt"]) == 0
    assert printed_credit(capsys.readouterr().out)[2] == pytest.approx(total, abs=2e-4)
    assert abs(score - total) > 1e-3


def test_abc_is_the_default(models, capsys):
    arguments = ["credit", "A film", "--reward-model", models["--reward-model"]]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name in ("abc", "attention"):
        assert main([*arguments, "--credit", name]) == 0
        assert capsys.readouterr().out == out


def test_the_list_has_every_method_with_its_paper_and_every_potential(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["credit", "--list"]) == 0
    out = capsys.readouterr().out
    for name in (*CREDIT_ASSIGNERS, *POTENTIALS):
        assert name in out
    for assigner in CREDIT_ASSIGNERS.values():
        assert assigner.label in out
        assert assigner.paper.split()[-1] in out
        assert all(type(readout).__name__ in out for readout in assigner.readouts)


def test_your_own_credit_is_found_by_its_module(models, tmp_path, monkeypatch, capsys):
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
    ids = tokenizer("A film", add_special_tokens=False)["input_ids"]
    expected = reward_model.read(Completions.from_lists([[tokenizer.bos_token_id]], [ids])).score
    assert main(["credit", "A film", "--reward-model", models["--reward-model"]]) == 0
    score = printed_credit(capsys.readouterr().out)[1]
    assert score == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("text", ["", "wonder " * 60])
def test_texts_that_do_not_fit(text, models, capsys):
    assert main(["credit", text, "--reward-model", models["--reward-model"]]) == 2
    assert capsys.readouterr().err.startswith("textgym: text=")
