"""Loading by name: what is shared, and what is refused with an explanation."""

from __future__ import annotations

import copy
import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, Qwen3ForSequenceClassification

from tests.conftest import make_tokenizer, tiny_config
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, RewardModel
from textgym.models.loading import (
    is_bfloat16_faster,
    load_language_model,
    load_reward_model,
    load_tokenizer,
)

BATCH = Completions.from_lists([[1, 40], [1]], [[50, 60, 2], [70]])
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.fixture
def folder(tmp_path, classifier, tokenizer):
    """A reward model's folder."""
    path = tmp_path / "reward_model"
    classifier.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def language_model_folder(tmp_path, language_model, tokenizer):
    path = tmp_path / "language_model"
    language_model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_gives_the_model_that_was_saved(folder, reward_model):
    loaded = load_reward_model(folder)
    torch.testing.assert_close(loaded.read(BATCH).score, reward_model.read(BATCH).score)


def test_a_folder_is_loaded_once_per_process(folder):
    assert load_reward_model(folder).model is load_reward_model(str(folder)).model
    assert load_tokenizer(folder) is load_tokenizer(folder)


def test_a_folder_that_was_written_again_is_read_again(language_model_folder):
    """As by a script that trains a model, saves it, and makes the next environment with it."""
    first = load_language_model(language_model_folder)
    before = first.get_input_embeddings().weight.detach().clone()
    trained = copy.deepcopy(first)
    with torch.no_grad():
        trained.get_input_embeddings().weight.mul_(2)
    trained.save_pretrained(language_model_folder)
    again = load_language_model(language_model_folder)
    assert torch.equal(again.get_input_embeddings().weight, 2 * before)


@pytest.mark.parametrize(
    ("load", "argument"),
    [(load_tokenizer, "tokenizer"), (load_language_model, "model"), (load_reward_model, "reward")],
)
def test_a_missing_folder_is_named(load, argument):
    with pytest.raises(InvalidArgumentError, match=rf"{argument}.*no such folder"):
        load("./no/such/folder")


@pytest.mark.parametrize(("device", "dtype"), [("cuda:99", None), ("gpu", None), ("cpu", "int8")])
def test_unusable_devices_and_dtypes_are_refused(folder, device, dtype):
    with pytest.raises(InvalidArgumentError, match=r"device|dtype"):
        load_reward_model(folder, device=device, dtype=dtype)


# Broken folders


def test_weights_that_are_not_safetensors_are_refused(folder, classifier):
    (folder / "model.safetensors").unlink()
    torch.save(classifier.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InvalidArgumentError, match="reward_model"):
        load_reward_model(folder)


def test_a_language_model_is_refused_as_a_reward_model(language_model_folder):
    """Its score head would be drawn at random."""
    with pytest.raises(InvalidArgumentError, match=r"score\.weight are missing"):
        load_reward_model(language_model_folder)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda weights: weights[: len(weights) // 2], "is damaged or incomplete"),
        (lambda weights: weights[:5], "is damaged or incomplete"),
        (lambda weights: b"", "is empty; copy or download it again"),
        (
            lambda weights: LFS_POINTER.encode(),
            "is a git-lfs pointer, not the file itself; run git lfs pull",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["reward_model", "language_model"])
def test_broken_weights_are_named_with_the_remedy(
    folder, language_model_folder, kind, cut, message
):
    broken = folder if kind == "reward_model" else language_model_folder
    load = load_reward_model if kind == "reward_model" else load_language_model
    path = broken / "model.safetensors"
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InvalidArgumentError) as caught:
        load(broken)
    assert caught.value.argument == ("reward_model" if kind == "reward_model" else "model")
    assert caught.value.value == str(broken)
    assert caught.value.remedy.startswith(f"model.safetensors {message}")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_git_lfs_pointers_of_other_files_are_recognized(folder, name):
    (folder / name).write_text(LFS_POINTER)
    with pytest.raises(InvalidArgumentError, match=f"{name} is a git-lfs pointer.*git lfs pull"):
        load_reward_model(folder)


@pytest.mark.parametrize(
    ("changes", "weight"),
    [
        ({"vocab_size": 350}, r"model\.embed_tokens\.weight"),
        ({"hidden_size": 64}, r"model\..*weight"),
        (
            {"id2label": {"0": "bad", "1": "fair", "2": "good"}},
            r"score\.weight has shape \(2, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(folder, changes, weight):
    change_config(folder, **changes)
    with pytest.raises(InvalidArgumentError, match=f"do not fit config.json: {weight}") as caught:
        load_reward_model(folder)
    assert caught.value.value == str(folder)


def test_a_language_model_that_does_not_fit_its_config_is_refused(language_model_folder):
    change_config(language_model_folder, vocab_size=350)
    with pytest.raises(InvalidArgumentError, match=r"do not fit config\.json"):
        load_language_model(language_model_folder)


def test_three_labels_are_refused_and_the_folder_is_named(tmp_path, tokenizer):
    Qwen3ForSequenceClassification(tiny_config(tokenizer, num_labels=3)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"3 labels.*name the one") as caught:
        load_reward_model(tmp_path)
    assert caught.value.value == str(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["reward_model", "language_model"])
def test_weights_that_are_not_finite_are_refused(folder, language_model_folder, kind, value):
    broken = folder if kind == "reward_model" else language_model_folder
    load = load_reward_model if kind == "reward_model" else load_language_model
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidArgumentError, match=r"NaN or infinity.*layers\.1\.mlp\.up_proj"):
        load(broken)


def test_weights_beyond_the_range_of_the_dtype_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_reward_model(folder).read(BATCH).score.isfinite().all()
    with pytest.raises(
        InvalidArgumentError, match=r"float16, in model\.norm\.weight.*another dtype"
    ):
        load_reward_model(folder, dtype="float16")


@pytest.mark.parametrize(
    "changes",
    [
        {"score_mean": "high"},
        {"score_mean": None},
        {"score_mean": float("nan")},
        {"score_std": float("inf")},
        {"score_std": 0},
        {"score_std": [1.0]},
    ],
)
def test_unusable_statistics_are_refused(folder, changes):
    change_config(folder, **changes)
    (name,) = changes
    with pytest.raises(InvalidArgumentError, match=f"{name} in its config.*normalize_score=False"):
        load_reward_model(folder)
    assert load_reward_model(folder, normalize_score=False).read(BATCH).score.isfinite().all()


# Tokenizers


def bert(num_rows):
    config = BertConfig(
        vocab_size=num_rows,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return BertForSequenceClassification(config)


def test_an_embedding_smaller_than_the_tokenizer_is_refused(tokenizer):
    small = bert(len(tokenizer) - 1)
    for wrap in (RewardModel, load_reward_model):
        with pytest.raises(InvalidArgumentError, match="339 rows, fewer than the 340 tokens"):
            wrap(small, tokenizer)


def test_a_folder_whose_tokenizer_has_more_tokens_than_its_model_is_refused(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InvalidArgumentError, match="fewer than") as caught:
        load_reward_model(folder)
    assert caught.value.value == str(folder)


def test_an_embedding_of_another_vocabulary_needs_its_own_tokenizer(tokenizer):
    large = bert(1000)
    with pytest.raises(InvalidArgumentError, match=r"1000 rows.*RewardModel\(model, tokenizer\)"):
        load_reward_model(large, tokenizer)
    named = RewardModel(large, tokenizer)
    assert load_reward_model(named) is named


@pytest.mark.parametrize("num_rows", [340, 352, 384])
def test_a_padded_embedding_is_accepted(tokenizer, num_rows):
    assert load_reward_model(bert(num_rows), tokenizer).num_embeddings == num_rows


def test_the_class_of_a_model_is_no_model(language_model):
    with pytest.raises(InvalidArgumentError, match="is a class"):
        load_language_model(type(language_model))


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_a_processor_that_is_slow_in_one_dtype_is_faster_in_the_other(monkeypatch, slow):
    linear = torch.nn.functional.linear

    def linear_of_a_slow_processor(texts, weight):
        if texts.dtype == slow:
            time.sleep(0.05)  # far more than a product takes
        return linear(texts, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", linear_of_a_slow_processor)
    assert is_bfloat16_faster() == (slow == torch.float32)
