"""`textgym credit`: the printed numbers add up, and the list is complete."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.commands import ONE_LINE
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
    arguments += ["--start", "prompt", "--credit"]
    assert main(["credit", "is a quiet wonder.", *arguments, "uniform"]) == 0
    out = capsys.readouterr().out
    values, score, total = printed_credit(out)
    assert sum(values) == pytest.approx(total, abs=1e-4 * len(values))
    assert "(score - prompt score)" in out
    assert main(["credit", "is a quiet wonder.", *arguments, "prefix-score"]) == 0
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


def test_a_score_that_is_no_number_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken_reward.py").write_text(
        "def score(prompts, completions, **rest):\n    return [float('nan')] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["credit", "A film", "--reward-model", "broken_reward:score", "--credit", "uniform"]
    assert main([*command, "--html", "page.html"]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert "score" in error
    assert not (tmp_path / "page.html").exists()


# --- Several texts and methods


def explored(path):
    """The data of a page."""
    text = path.read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="texts">(.*?)</script>', text, re.DOTALL)
    return json.loads(block[1])


def test_several_texts_and_methods_are_printed_one_after_the_other(models, capsys):
    arguments = ["--reward-model", models["--reward-model"], "--credit", "sparse", "uniform"]
    assert main(["credit", "A film", "Dull", *arguments]) == 0
    out = capsys.readouterr().out
    scores = [float(score) for score in re.findall(r"score +(\S+)", out)]
    sums = re.findall(r"sum +(\S+)  (sparse|uniform)", out)
    assert [name for _, name in sums] == ["sparse", "uniform"] * 2
    assert [float(value) for value, _ in sums[::2]] == pytest.approx(scores, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.txt", "A film\nis a quiet wonder.\n"),
        ("texts.jsonl", '{"text": "A film"}\n{"text": "is a quiet wonder."}\n'),
        ("texts.csv", "completion,score\nA film,3\nis a quiet wonder.,4\n"),
    ],
)
def test_a_page_has_the_texts_of_a_file(name, content, models, tokenizer, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    page = tmp_path / "page.html"
    arguments = ["--reward-model", models["--reward-model"], "--credit", "abc", "sparse"]
    source = ["--texts", str(tmp_path / name), "--html", str(page)]
    assert main(["credit", *source, *arguments]) == 0
    assert str(page) in capsys.readouterr().out
    data = explored(page)
    assert [method["name"] for method in data["methods"]] == ["abc", "sparse"]
    for one, text in zip(data["texts"], ["A film", "is a quiet wonder."], strict=True):
        assert "".join(one["pieces"]) == text
        for credit in one["credit"]:
            assert sum(credit) == pytest.approx(one["score"], abs=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ["A film", "Dull", "--credit", "abc", "sparse"],
        ["--credit", "abc", "sparse", "A film", "Dull"],
        ["A film", "--credit", "abc", "sparse", "So dull"],
        ["--credit", "abc", "sparse", "--", "Dull", "A film"],
    ],
)
def test_texts_stand_on_either_side_of_the_methods(words, models, tmp_path):
    page = tmp_path / "page.html"
    flags = ["--html", str(page), "--reward-model", models["--reward-model"]]
    assert main(["credit", *flags, *words]) == 0
    data = explored(page)
    assert [method["name"] for method in data["methods"]] == ["abc", "sparse"]
    texts = ["".join(one["pieces"]) for one in data["texts"]]
    assert texts == [word for word in words if word[0].isupper()]


def test_texts_in_a_batch_get_the_credit_that_they_get_alone(models, tmp_path):
    texts = ["A film", "is a quiet wonder. " * 3, "Dull"]
    arguments = ["--reward-model", models["--reward-model"], "--credit", "abc", "prefix-score"]
    together = tmp_path / "together.html"
    assert main(["credit", *texts, "--html", str(together), *arguments]) == 0
    for number, text in enumerate(texts):
        alone = tmp_path / f"{number}.html"
        assert main(["credit", text, "--html", str(alone), *arguments]) == 0
        (expected,), found = explored(alone)["texts"], explored(together)["texts"][number]
        assert found["pieces"] == expected["pieces"]
        for values, others in zip(found["credit"], expected["credit"], strict=True):
            assert values == pytest.approx(others, abs=1e-3)


def test_prompts_of_a_file_come_before_their_completions(models, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "This film", "completion": " is a wonder"}\n{"completion": "A film"}\n'
    )
    page = tmp_path / "page.html"
    arguments = ["--reward-model", models["--reward-model"], "--prompt", "I"]
    source = ["--texts", str(tmp_path / "pairs.jsonl"), "--html", str(page)]
    assert main(["credit", *source, *arguments]) == 0
    first, second = explored(page)["texts"]
    assert (first["prompt"], "".join(first["pieces"])) == ("This film", " is a wonder")
    assert (second["prompt"], "".join(second["pieces"])) == ("I", "A film")


def test_the_samples_of_a_run_get_the_credit_of_its_reward_model(trained, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["--credit", "uniform", "--beta", "0.5"]  # as the run was trained
    assert main(["credit", "--texts", str(trained), "--html", str(page), *arguments]) == 0
    rows = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    newest = [row for row in rows if row["iteration"] == rows[-1]["iteration"]]
    for one, row in zip(explored(page)["texts"], newest, strict=True):
        assert one["score"] == pytest.approx(row["score"], abs=1e-3)
        assert one["credit"][0] == pytest.approx(row["credit"], abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--texts", "missing.jsonl"], "texts='missing.jsonl'"),
        (["--texts", "."], "without samples.jsonl"),
        (["--texts", "empty.txt"], "empty"),
        (["--texts", "blank.txt"], "row 2 has no text"),
        (["--texts", "other.csv"], "needs a column text"),
        (["--texts", "numbers.jsonl"], "row 1 has no text"),
        (["A film", "--html", "page.txt"], "must end in .html"),
        (["A film", "--html", "nowhere/page.html"], "is in no folder that exists"),
        (["A film", "--html", "folder.html"], "is a folder"),
        (["A film", "--credit", "abc", "abc"], "is there twice"),
        (["A film", "--credit", "abc", "guess"], "guess"),
        (["--credit", "abc", "film"], "text='': write one (behind --credit"),
        (["--credit", "A film"], "name at least one method"),
    ],
)
def test_what_cannot_be_explored_is_one_line(
    arguments, part, models, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    files = {
        "empty.txt": "",
        "blank.txt": "A film\n\nDull\n",
        "other.csv": "review\nA film\n",
        "numbers.jsonl": '{"text": 3}\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert main(["credit", *arguments, "--reward-model", models["--reward-model"]]) == 2
    error = capsys.readouterr().err
    assert ONE_LINE.fullmatch(error)
    assert part in error
