"""The build of the embedded models: its parts, and all stages at toy size."""

from __future__ import annotations

import copy
import dataclasses
import json
import zlib

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Trainer,
)
from transformers.trainer_utils import get_last_checkpoint

from textgym.errors import InvalidArgumentError
from textgym.models.build.language_model import LanguageModelRecipe, pack, train_language_model
from textgym.models.build.optimizer import MuonWithAdamW
from textgym.models.build.pipeline import BuildOptions, build
from textgym.models.build.prompt_set import sample_completions
from textgym.models.build.reward_model import (
    PrefixSupervision,
    RewardModelRecipe,
    score_sequences,
    train_reward_model,
)
from textgym.models.build.tokenizer import train_tokenizer
from textgym.models.build.windows import PadRight, Window, batch_by_length, draw_windows
from textgym.reviews import Review, clean_review, is_held_out

TINY = Qwen3Config(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    num_labels=2,
)


def _toy_reviews(count: int) -> list[Review]:
    rng = np.random.default_rng(0)
    nouns = ["film", "plot", "cast", "end", "music"]
    words = [["bad", "dull", "poor"], ["good", "fine", "great"]]
    reviews = []
    for index in range(count):
        label = index % 2
        sentences = [
            f"The {rng.choice(nouns)} is {rng.choice(words[label])}." for _ in range(1 + index % 9)
        ]
        source = "rotten_tomatoes" if index % 9 == 1 else "imdb"
        reviews.append(Review(" ".join(sentences), label, source))
    return reviews


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [review.text for review in _toy_reviews(50)]
    return train_tokenizer(texts, 300, 64, tmp_path_factory.mktemp("tokenizer"))


# Data


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("one<br /><br />two<BR>three", "one two three"),
        ("<i>Tom</i> &amp; Jerry", "Tom & Jerry"),
        ("it\x92s \x93good\x94", "it’s “good”"),
        ("  a \n\t b  ", "a b"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
        ("", ""),
    ],
)
def test_clean_review(raw, clean):
    assert clean_review(raw) == clean


def test_split_is_stable_and_holds_out_about_one_in_twenty():
    texts = [f"text number {number}" for number in range(4000)]
    held_out = [is_held_out(text) for text in texts]
    assert held_out == [zlib.crc32(text.encode()) % 20 == 0 for text in texts]
    assert 0.035 < np.mean(held_out) < 0.065
    # Order, and the other texts, do not matter.
    assert [is_held_out(text) for text in reversed(texts)] == held_out[::-1]


def test_pack_uses_every_document_once_per_pass():
    documents = [np.arange(start, start + 5) for start in range(0, 50, 5)]
    rows = pack(documents, length=10, passes=2, seed=3)
    assert rows.shape == (10, 10)
    assert rows.dtype == np.int32
    for half in (rows[:5], rows[5:]):
        assert sorted(half.flatten()) == list(range(50))
    assert not np.array_equal(rows[:5], rows[5:])
    np.testing.assert_array_equal(rows, pack(documents, 10, 2, seed=3))
    assert not np.array_equal(rows, pack(documents, 10, 2, seed=4))


def test_pack_takes_part_of_a_pass_and_leaves_out_the_tail():
    documents = [np.arange(7), np.arange(8)]
    assert pack(documents, length=4, passes=1.5, seed=0).shape == (5, 4)  # 22 tokens


# Windows


def test_windows_have_the_right_lengths_labels_and_texts(tokenizer):
    reviews = _toy_reviews(300)
    windows = draw_windows(reviews, tokenizer, 4, 12, np.random.default_rng(0), end_share=0.3)
    lengths = [
        len(window.input_ids) - 1 - (window.input_ids[-1] == tokenizer.eos_token_id)
        for window in windows
    ]
    assert min(lengths) == 4
    assert max(lengths) == 12
    assert np.mean(np.array(lengths) <= 7) > 0.5  # log-uniform: most are short
    ended = np.mean([window.input_ids[-1] == tokenizer.eos_token_id for window in windows])
    assert 0.2 < ended < 0.4
    for window in windows:
        assert window.input_ids[0] == tokenizer.bos_token_id
        text = tokenizer.decode(window.input_ids, skip_special_tokens=True)
        assert text.startswith("The ")
        candidates = [review for review in reviews if text in review.text]
        assert window.label in {review.label for review in candidates}


def test_windows_start_where_requested(tokenizer):
    review = Review("First one here. Second one here. Third one here.", 1, "imdb")
    firsts = {}
    for share in (0.0, 1.0):
        windows = draw_windows(
            [review] * 40, tokenizer, 2, 3, np.random.default_rng(0), start_share=share
        )
        texts = [tokenizer.decode(window.input_ids, skip_special_tokens=True) for window in windows]
        firsts[share] = {text[0] for text in texts}
    assert firsts == {0.0: {"S", "T"}, 1.0: {"F"}}


def test_texts_that_are_too_short_give_no_window(tokenizer):
    reviews = [Review("The", 0, "imdb"), Review("The film is good. " * 5, 1, "imdb")]
    windows = draw_windows(reviews, tokenizer, 6, 8, np.random.default_rng(0), start_share=1.0)
    assert [window.label for window in windows] == [1]


def test_batches_hold_windows_of_similar_length():
    rng = np.random.default_rng(0)
    windows = [Window([1] * int(length), 0) for length in rng.integers(1, 100, size=103)]
    ordered = batch_by_length(windows, 10, rng)
    assert len(ordered) == 100
    lengths = np.array([len(window.input_ids) for window in ordered]).reshape(10, 10)
    assert np.ptp(lengths, axis=1).mean() < 15
    assert list(lengths[:, 0]) != sorted(lengths[:, 0])


# Reward model


def _windows(lengths: list[int], labels: list[int]) -> list[Window]:
    rng = np.random.default_rng(0)
    return [
        Window([1, *rng.integers(3, 40, size=length - 1).tolist()], label)
        for length, label in zip(lengths, labels, strict=True)
    ]


def test_loss_is_the_mean_over_prefixes_and_the_last_token():
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(TINY).eval()
    windows = _windows([5, 9, 7], [0, 1, 1])
    loss = PrefixSupervision(model, min_tokens=4, prefix_weight=0.5)(
        **PadRight(pad_token_id=0, multiple=4)(windows)
    )["loss"]

    def cross_entropy(ids, label):
        logits = model(input_ids=torch.tensor([ids])).logits
        return torch.nn.functional.cross_entropy(logits, torch.tensor([label])).item()

    expected = []
    for ids, label in windows:
        prefixes = [cross_entropy(ids[:end], label) for end in range(5, len(ids) + 1)]
        expected.append((prefixes[-1] + 0.5 * np.mean(prefixes)) / 1.5)
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_scores_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(TINY)
    sequences = [window.input_ids for window in _windows([3, 9, 6, 2], [0] * 4)]
    alone = torch.cat([score_sequences(model, [ids]) for ids in sequences])
    torch.testing.assert_close(score_sequences(model, sequences, batch_size=3), alone)


# Sampling


def test_completions_stop_at_their_budget_or_the_end_token():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(TINY)
    prompts = [[1, 5], [1, 6, 7, 8], [1]] * 40
    budgets = [3, 6, 12] * 40
    sampled = sample_completions(model, prompts, budgets, torch.Generator().manual_seed(0), 3)
    again = sample_completions(model, prompts, budgets, torch.Generator().manual_seed(0), 3)
    assert sampled == again
    assert any(len(ids) < budget for ids, budget in zip(sampled, budgets, strict=True))
    for ids, budget in zip(sampled, budgets, strict=True):
        assert 3 <= len(ids) <= budget
        assert 2 not in ids[:-1]
        assert len(ids) == budget or ids[-1] == 2


def test_sampling_follows_the_model_whatever_the_padding():
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)  # so peaked that sampling is as good as greedy
    prompts = [[1, 5], [1, 6, 7, 8, 9, 10], [1]]
    sampled = sample_completions(model, prompts, [6] * 3, torch.Generator().manual_seed(0), 6)
    for prompt, completion in zip(prompts, sampled, strict=True):
        ids = list(prompt)
        for token in completion:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[2] = -torch.inf
            assert logits.softmax(-1)[token] > 0.01
            ids.append(token)


# Optimizer


def _train(model, optimizer, steps, generator):
    for _ in range(steps):
        batch = torch.randint(3, 40, (2, 8), generator=generator)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


def test_optimizer_gives_the_matrices_of_the_blocks_to_muon():
    model = Qwen3ForCausalLM(TINY)
    optimizer = MuonWithAdamW(model, muon_lr=0.1, muon_weight_decay=0.2, adamw_lr=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        group["lr"]: {names[id(parameter)] for parameter in group["params"]}
        for group in optimizer.param_groups
    }
    assert groups[0.1] | groups[0.3] == set(names.values())
    assert groups[0.1] == {
        name for name in names.values() if "_proj.weight" in name and ".layers." in name
    }
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= groups[0.3]


def test_optimizer_continues_exactly_from_its_state():
    def fresh():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(TINY)
        return model, MuonWithAdamW(model, 0.02, 0.1, 3e-3)

    model, optimizer = fresh()
    generator = torch.Generator().manual_seed(0)
    _train(model, optimizer, 3, generator)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved = copy.deepcopy(optimizer.state_dict())  # as a file would hold it
    other, other_optimizer = fresh()
    other.load_state_dict(weights)
    other_optimizer.load_state_dict(saved)
    position = generator.get_state()
    _train(model, optimizer, 3, generator)
    generator.set_state(position)
    _train(other, other_optimizer, 3, generator)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)
    # A schedule reaches the restored optimizer through the shared groups.
    for group in other_optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    _train(other, other_optimizer, 1, generator)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


# Training


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["language_model", "reward_model"])
def test_training_continues_exactly_after_a_stop(kind, tokenizer, tmp_path, monkeypatch):
    reviews = _toy_reviews(60)
    documents = [
        np.array(tokenizer(review.text)["input_ids"] + [tokenizer.eos_token_id])
        for review in reviews
    ]

    def train(folder):
        if kind == "language_model":
            sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "head_dim": 8}
            recipe = LanguageModelRecipe(
                **sizes, context=32, batch_size=8, passes=2, warmup_steps=2
            )
            return train_language_model(documents, tokenizer, recipe, folder, compile_model=False)
        torch.manual_seed(0)
        recipe = RewardModelRecipe(max_tokens=16, passes=2, batch_size=8, warmup_steps=2)
        config = copy.deepcopy(TINY)
        config.vocab_size = len(tokenizer)
        return train_reward_model(Qwen3ForCausalLM(config), reviews, tokenizer, recipe, folder)

    monkeypatch.setattr("textgym.models.build.training._SAVE_STEPS", 4)
    uninterrupted = train(tmp_path / "uninterrupted")

    steps = []
    training_step = Trainer.training_step

    def stop_at_step_7(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 7:
            raise _Stopped
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stop_at_step_7)
    with pytest.raises(_Stopped):
        train(tmp_path / "stopped")
    continued = train(tmp_path / "stopped")
    total = int(get_last_checkpoint(str(tmp_path / "stopped")).rpartition("-")[2])
    assert len(steps) == 7 + total - 4  # continued from the checkpoint, not from the start
    for name, tensor in uninterrupted.state_dict().items():
        torch.testing.assert_close(continued.state_dict()[name], tensor, rtol=0, atol=0)


# All stages


def test_build_writes_folders_that_load(tmp_path, capsys):
    options = BuildOptions(
        output=tmp_path / "output",
        work=tmp_path / "work",
        device="cpu",
        compile_model=False,
        language_model=LanguageModelRecipe(
            vocab_size=320,
            hidden_size=16,
            intermediate_size=32,
            num_layers=2,
            head_dim=8,
            context=32,
            batch_size=4,
            passes=6,
            warmup_steps=2,
            adamw_lr=3e-2,
        ),
        reward_model=RewardModelRecipe(max_tokens=16, passes=2, batch_size=8, warmup_steps=2),
        num_prompts=10,
        num_reference_completions=20,
        num_samples=2,
    )
    reviews = _toy_reviews(120)
    build(options, reviews[:100], reviews[100:])

    folder = options.output / "language_model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["nats_per_token"]["32"] < np.log(320) - 1
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert f"{evaluation['nats_per_token']['32']:.3f}" in card

    prompts = json.loads((options.output / "prompts.json").read_text())
    assert len(set(prompts)) == 10
    lengths = [len(ids) - 1 for ids in tokenizer(prompts)["input_ids"]]
    assert set(lengths) == set(range(2, 9))

    folder = options.output / "reward_model"
    assert AutoTokenizer.from_pretrained(folder)("The film")["input_ids"][0] == 1
    reward_model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert reward_model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert reward_model.dtype == torch.bfloat16
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert reward_model.config.score_mean == evaluation["score_mean"]
    assert reward_model.config.score_std > 0
    assert {"imdb 8-24", "rotten_tomatoes"} <= set(evaluation["held_out"])
    assert (folder / "README.md").read_text().startswith("---\nlicense: mit\n")

    # A second run finds everything done, and gives the same files.
    weights = (folder / "model.safetensors").read_bytes()
    capsys.readouterr()
    build(options, reviews[:100], reviews[100:])
    assert "training" not in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == weights

    changed = dataclasses.replace(options, reward_model=RewardModelRecipe(passes=1))
    with pytest.raises(InvalidArgumentError, match="another recipe"):
        build(changed, reviews[:100], reviews[100:])
