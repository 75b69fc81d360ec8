"""Reward models trained from pairs and from labels."""

from __future__ import annotations

import json
import math

import datasets
import gymnasium as gym
import numpy as np
import pytest
import torch

import textgym  # noqa: F401
from tests.cli.commands import ONE_LINE
from textgym.cli import main
from textgym.errors import InvalidArgumentError
from textgym.models import RewardModel, load_reward_model
from textgym.reward_training import (
    Labelled,
    Pair,
    RewardRecipe,
    evaluate,
    load_examples,
    split_examples,
    train_reward_model,
)
from textgym.reward_training.evaluation import calibration_error
from textgym.reward_training.training import _Collate, load_base, pair_loss

WORDS = ["film", "plot", "actor", "end", "music"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, language_model, tokenizer):
    """A language model on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    language_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(seed, number=120):
    """Good and bad texts: a word tells them apart, anywhere in a text."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        words = rng.choice(WORDS, size=6).tolist()
        place = int(rng.integers(6))
        yield tuple(
            " ".join([*words[:place], sign, *words[place:], str(index)]) for sign in ("good", "bad")
        )


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- Data


def test_columns_decide_what_the_examples_are(tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "A ", "chosen": "good", "rejected": "bad"}])
    assert load_examples(pairs) == [Pair("A good", "A bad")]
    labels = write(
        tmp_path / "labels.jsonl",
        [{"text": "good", "label": "Positive"}, {"text": "bad", "label": "negative"}],
    )
    assert load_examples(labels) == [Labelled("good", 1), Labelled("bad", 0)]
    (tmp_path / "labels.csv").write_text("text,label\ngood,1\nbad,0\n")
    assert load_examples(tmp_path / "labels.csv") == load_examples(labels)
    dataset = datasets.Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "margin": [0.5]})
    assert load_examples(dataset) == [Pair("a", "b", 0.5)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"words": "a"}], "needs chosen and rejected, or text and label"),
        ([{"text": "a", "label": 3}], "row 0, label 3"),
        ([{"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}], "apply_chat_template"),
        ([{"chosen": "a", "rejected": "b", "margin": "much"}], "row 0, margin much"),
        ([{"chosen": "a", "rejected": "b", "margin": float("nan")}], "row 0, margin nan"),
    ],
)
def test_other_data_are_refused(rows, message):
    with pytest.raises(InvalidArgumentError, match=message):
        load_examples(datasets.Dataset.from_list(rows))


def test_equal_texts_are_on_one_side_of_the_split():
    examples = [Pair(good, bad) for good, bad in texts(0)]
    train, held_out = split_examples(examples * 2, 5)
    assert not {one.key for one in train} & {one.key for one in held_out}
    assert len(train) + len(held_out) == 240
    assert 20 < len(held_out) < 90
    with pytest.raises(InvalidArgumentError, match="too few"):
        split_examples(examples[:1], 5)


# --- Loss and batches


def test_the_loss_of_pairs_is_that_of_bradley_and_terry():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0])
    margin = torch.tensor([0.0, 0.25])
    p = [1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(2.25))]
    expected = -(math.log(p[0]) + math.log(p[1])) / 2
    assert pair_loss(chosen, rejected, margin, 0.0).item() == pytest.approx(expected)
    centred = pair_loss(chosen, rejected, margin, 0.1).item()
    assert centred == pytest.approx(expected + 0.1 * (1.5**2 + 2.0**2) / 2)


def test_prefixes_are_cut_at_the_same_share_of_both_texts(tokenizer):
    pairs = [Pair("good film " * 8, "bad plot " * 8) for _ in range(6)]
    collate = _Collate(tokenizer, RewardRecipe(prefix_share=1.0, max_length=64))
    lengths = collate(pairs)["attention_mask"].sum(1)
    whole = [len(tokenizer(text)["input_ids"]) for text in (pairs[0].chosen, pairs[0].rejected)]
    shares = lengths[:6] / whole[0], lengths[6:] / whole[1]
    torch.testing.assert_close(*shares, atol=0.04, rtol=0)
    assert len(set(lengths[:6].tolist())) > 2
    uncut = _Collate(tokenizer, RewardRecipe(prefix_share=0.0, max_length=64))(pairs)
    assert set(uncut["attention_mask"].sum(1).tolist()) == set(whole)


# --- Training


@pytest.mark.parametrize("kind", ["pairs", "labels"])
def test_a_reward_model_learns_what_tells_texts_apart(kind, base):
    if kind == "pairs":
        examples = [Pair(good, bad) for good, bad in texts(0)]
        held_out = [Pair(good, bad) for good, bad in texts(1, 40)]
    else:
        examples = [Labelled(t, 1 - i) for both in texts(0) for i, t in enumerate(both)]
        held_out = [Labelled(t, 1 - i) for both in texts(1, 40) for i, t in enumerate(both)]
    torch.manual_seed(0)
    model, tokenizer = load_base(base, 1 if kind == "pairs" else 2)
    before = evaluate(RewardModel(model, tokenizer), held_out, 64)
    recipe = RewardRecipe(epochs=4, learning_rate=3e-3, batch_size=16, max_length=64)
    train_reward_model(model, tokenizer, examples, recipe)
    after = evaluate(RewardModel(model, tokenizer), held_out, 64)
    assert after["accuracy"]["1"] > 0.95 > before["accuracy"]["1"]
    assert after["log_loss"] < before["log_loss"]
    # Half of the texts have the word in their first half.
    assert 0.55 < after["accuracy"]["0.5"] < after["accuracy"]["1"]


def test_calibration_is_the_distance_of_confidence_and_accuracy():
    assert calibration_error(np.full(10, 0.95)) == pytest.approx(0.05)
    assert calibration_error(np.array([0.95] * 5 + [0.05] * 5)) == pytest.approx(0.45)


# --- The command


def test_the_command_writes_a_folder_that_an_environment_takes(base, tmp_path, capsys):
    rows = [{"chosen": good, "rejected": bad} for good, bad in texts(0)]
    data = write(tmp_path / "pairs.jsonl", rows)
    flags = ["--base", str(base), "--max-length", "64", "--held-out-one-in", "5"]
    output = ["--output", str(tmp_path / "rm")]
    assert main(["train-reward", str(data), *flags, *output]) == 0
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert "calibration error" in shown
    evaluation = json.loads((tmp_path / "rm" / "evaluation.json").read_text())
    reward_model = load_reward_model(tmp_path / "rm")
    assert reward_model.score_mean == pytest.approx(evaluation["score_mean"])
    env = gym.make(
        "ABC-RLHF-v0", tokenizer=str(tmp_path / "rm"), reward_model=str(tmp_path / "rm"),
        prompts=["This film"],
    )  # fmt: skip
    assert env.unwrapped.reward_model.is_causal  # It reads the policy's tokens as they are.
    assert main(["train-reward", str(data), *flags, *output]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "epochs=0"),
        (["--prefix-share", "2"], "from 0 to 1"),
        (["--held-out-one-in", "1"], "at least 2"),
        (["--base", "/nowhere"], "no such folder"),
    ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "pairs.jsonl", [{"chosen": a, "rejected": b} for a, b in texts(0)])
    assert main(["train-reward", str(data), *flags]) == 2
    error = capsys.readouterr().err.splitlines(keepends=True)[-1]  # after progress bars
    assert ONE_LINE.fullmatch(error)
    assert message in error
