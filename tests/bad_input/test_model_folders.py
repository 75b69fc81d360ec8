"""Model folders: missing, cut, empty, of another kind, or with weights that mean nothing."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Qwen3ForSequenceClassification,
)

from tests.bad_input.outcomes import refusals, refused
from tests.conftest import make_tokenizer, tiny_config
from textgym.agents import PPO
from textgym.models import RewardModel, load_language_model, load_reward_model, load_tokenizer
from textgym.wrappers import LanguageModelFeatures

AREA = "model folders"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def good(tmp_path_factory, language_model, classifier, tokenizer):
    """Folders by kind; leave them as they are."""
    folder = tmp_path_factory.mktemp("good")
    for kind, model in (("language_model", language_model), ("reward_model", classifier)):
        model.save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
    return folder


LOAD = {"language_model": load_language_model, "reward_model": load_reward_model}
BREAK = {
    "missing": None,
    "empty": lambda data: b"",
    "a pointer of git-lfs": lambda data: POINTER,
    "half": lambda data: data[: len(data) // 2],
    "three bytes short": lambda data: data[:-3],
    "ten bytes": lambda data: data[:10],
    "words": lambda data: b"This is no model.",
    "zeros": lambda data: bytes(len(data)),
    "a list": lambda data: b"[]",
    "a number": lambda data: b"7",
    "null": lambda data: b"null",
    "an empty object": lambda data: b"{}",
    "Latin-1": lambda data: b'{"a": "caf\xe9"}',
}
STILL_WHOLE = {
    ("tokenizer_config.json", "missing"): "tokenizer.json says the same",
    ("tokenizer_config.json", "an empty object"): "tokenizer.json says the same",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", LOAD)
def test_a_broken_file(kind, name, good, tmp_path):
    cases, accepted = {}, {}
    for number, (label, change) in enumerate(BREAK.items()):
        folder = tmp_path / str(number)
        shutil.copytree(good / kind, folder)
        if change is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(change((folder / name).read_bytes()))
        is_of_tokenizer = name.startswith("tokenizer")
        load = load_tokenizer if is_of_tokenizer else LOAD[kind]
        cases[label] = partial(load, folder)
        if (name, label) in STILL_WHOLE:
            accepted[label] = STILL_WHOLE[name, label]
    refusals(AREA, cases, ["model", "reward_model", "tokenizer"], accepted)


@pytest.mark.parametrize("load", [load_tokenizer, load_reward_model])
def test_a_model_saved_without_its_tokenizer(load, good, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(good / "reward_model" / name, tmp_path)
    refused(AREA, partial(load, tmp_path), "tokenizer", match="tokenizer.save_pretrained")


def test_a_broken_folder_names_the_argument_of_an_environment_or_agent(good, tmp_path, tiny, envs):
    import gymnasium as gym

    for number, name in enumerate(FILES[:3]):
        for kind in LOAD:
            folder = tmp_path / f"{kind}{number}"
            shutil.copytree(good / kind, folder)
            (folder / name).write_bytes(POINTER)
            if kind == "reward_model":
                arguments = tiny | {"reward_model": folder}
                call = partial(gym.make, "ABC-RLHF-v0", **arguments)
                refused(AREA, call, "reward_model", "tokenizer", match="git-lfs")
            elif not name.startswith("tokenizer"):
                refused(AREA, partial(PPO, folder, envs), "policy", match="git-lfs")


def config_with(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights_with(change):
    def change_file(folder):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change_file


def without(part):
    return weights_with(lambda w: [w.pop(name) for name in list(w) if part in name])


def filled(part, value):
    def fill(weights):
        for name in weights:
            if part in name:
                weights[name] = weights[name].clone()
                weights[name].view(-1)[3] = value

    return weights_with(fill)


WRONG = {
    "another vocabulary": config_with(vocab_size=350),
    "another width": config_with(hidden_size=64),
    "more layers": config_with(num_hidden_layers=3),
    "no layers": config_with(num_hidden_layers=0),
    "layers in words": config_with(num_hidden_layers="two"),
    "negative width": config_with(hidden_size=-32),
    "heads that do not divide": config_with(num_attention_heads=3),
    "an unknown type": config_with(model_type="no-such-model"),
    "no type": config_with(model_type=None),
    "another type": config_with(model_type="bert"),
    "code of its own": config_with(
        model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    ),
    "no attention": without("self_attn.q_proj"),
    "no embedding": without("embed_tokens"),
    "no layer": without("layers.1."),
    "NaN in a norm": filled("model.norm", float("nan")),
    "NaN in the embedding": filled("embed_tokens", float("nan")),
    "infinity in a layer": filled("layers.0.mlp.up_proj", float("inf")),
    "other names": weights_with(
        lambda w: [w.__setitem__("x." + name, w.pop(name)) for name in list(w)]
    ),
    "nothing": weights_with(lambda w: w.clear()),
}
OF_REWARD_MODELS = {
    "three labels": config_with(id2label={"0": "a", "1": "b", "2": "c"}),
    "no head": without("score"),
    "NaN in the head": filled("score", float("nan")),
    "score_mean NaN": config_with(score_mean=float("nan")),
    "score_mean infinite": config_with(score_mean=float("inf")),
    "score_mean in words": config_with(score_mean="high"),
    "score_std 0": config_with(score_std=0),
    "score_std negative": config_with(score_std=-1.0),
    "score_std NaN": config_with(score_std=float("nan")),
    "score_std a list": config_with(score_std=[1.0]),
}


@pytest.mark.parametrize("label", [*WRONG, *OF_REWARD_MODELS])
def test_a_folder_whose_parts_do_not_fit(label, good, tmp_path):
    for kind, load in LOAD.items():
        if label in WRONG or kind == "reward_model":
            folder = tmp_path / kind
            shutil.copytree(good / kind, folder)
            {**WRONG, **OF_REWARD_MODELS}[label](folder)
            refused(AREA, partial(load, folder), "model", "reward_model", match=str(folder))


def tiny_bert(kind, tokenizer):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return kind(config)


def test_models_of_another_kind(good, tmp_path, tokenizer, envs, env):
    encoder, classifier = tmp_path / "encoder", tmp_path / "classifier"
    tiny_bert(BertForMaskedLM, tokenizer).save_pretrained(encoder)
    tiny_bert(BertForSequenceClassification, tokenizer).save_pretrained(classifier)
    for folder in (encoder, classifier):
        tokenizer.save_pretrained(folder)
    cases = {
        "a classifier as policy": partial(PPO, good / "reward_model", envs),
        "an encoder as policy": partial(PPO, classifier, envs),
        "a language model as reward": partial(load_reward_model, good / "language_model"),
        "an encoder without a head": partial(load_reward_model, encoder),
        "a classifier for features": partial(LanguageModelFeatures, env, good / "reward_model"),
    }
    refusals(AREA, cases, ["policy", "reward_model", "model"])


def test_loaded_objects_of_another_kind(language_model, classifier, tokenizer, envs, env):
    three = Qwen3ForSequenceClassification(tiny_config(tokenizer, num_labels=3))
    encoder = tiny_bert(BertForSequenceClassification, tokenizer)
    cases = {
        "a classifier as policy": partial(PPO, classifier, envs),
        "an encoder as policy": partial(PPO, encoder, envs),
        "a language model as reward": partial(load_reward_model, language_model, tokenizer),
        "three labels": partial(load_reward_model, three, tokenizer),
        "a wrapped language model": partial(RewardModel, language_model, tokenizer),
        "a classifier for features": partial(LanguageModelFeatures, env, classifier),
        "another score": partial(RewardModel, three, tokenizer, score="best"),
        "no label": partial(RewardModel, three, tokenizer, score="logit"),
        "a label too many": partial(RewardModel, three, tokenizer, score="logit", label=3),
        "a label below": partial(RewardModel, three, tokenizer, score="logit", label=-1),
        "another label": partial(RewardModel, three, tokenizer, score="logit", label="joy"),
    }
    names = ["policy", "reward_model", "model", "score", "label"]
    refusals(AREA, cases, names)


def test_loaded_objects_with_weights_that_mean_nothing(tokenizer, envs, language_model, classifier):
    import copy

    for value in (float("nan"), float("inf")):
        policy, reward = copy.deepcopy(language_model), copy.deepcopy(classifier)
        with torch.no_grad():
            policy.model.norm.weight[0] = reward.score.weight[0, 0] = value
        cases = {
            "policy": partial(PPO, policy, envs),
            "reward model": partial(load_reward_model, reward, tokenizer),
        }
        refusals(AREA, cases, ["policy", "reward_model"])
    policy = copy.deepcopy(language_model)
    assert load_language_model(policy) is policy
    with torch.no_grad():  # After a first look, too.
        policy.model.norm.weight[0] = torch.nan
    refused(AREA, partial(load_language_model, policy), "model", match="NaN")
    with torch.device("meta"):
        empty = type(language_model)(language_model.config)
    refused(AREA, partial(PPO, empty, envs), "policy", match="meta")


def test_tokenizers_that_do_not_belong_to_the_model(good, tmp_path, envs):
    other = make_tokenizer(["quite another text about the weather"], vocab_size=300)
    larger = make_tokenizer(vocab_size=345)
    larger.add_tokens([f"<{n}>" for n in range(200)])
    for number, tokenizer in enumerate((other, larger)):
        for kind in LOAD:
            shutil.copytree(good / kind, tmp_path / f"{kind}{number}")
            tokenizer.save_pretrained(tmp_path / f"{kind}{number}")
        refused(AREA, partial(PPO, tmp_path / f"language_model{number}", envs), "policy")
    refused(AREA, partial(load_reward_model, tmp_path / "reward_model1"), "reward_model")


def test_swapped_labels_turn_the_score(good, tmp_path, tokenizer):
    """The names decide: a folder that names its first label positive means it."""
    ids = [[1, 40, 50, 60]]
    scores = {}
    for label, names in {
        "as usual": ["NEGATIVE", "POSITIVE"],
        "swapped": ["POSITIVE", "bad"],
    }.items():
        folder = tmp_path / label
        shutil.copytree(good / "reward_model", folder)
        config_with(
            id2label={str(n): name for n, name in enumerate(names)},
            label2id={name: n for n, name in enumerate(names)},
        )(folder)
        scores[label] = load_reward_model(folder, normalize_score=False).score_ids(ids)
    torch.testing.assert_close(scores["swapped"], -scores["as usual"])


def test_places_that_are_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    places = {
        "missing": tmp_path / "no",
        "a file": tmp_path / "file",
        "an empty folder": tmp_path / "empty",
        "a cache": tmp_path / "file" / "below",
        "a null": "a\0b",
        "long": "x" * 5000,
        "three parts": "a/b/c",
        "a URL": "https://example.org/model",
        "no owner": "no-such-model-anywhere",
        "an owner": "no-such-owner/no-such-model",
        "odd signs": "what is/this?",
    }
    for load in (load_language_model, load_reward_model, load_tokenizer):
        cases = {label: partial(load, place) for label, place in places.items()}
        refusals(AREA, cases, ["model", "reward_model", "tokenizer"])
