"""Prompt files: every way in which a file can be wrong, and what is right nearby."""

from __future__ import annotations

import gzip
import json
import pickle
from functools import partial

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_input.outcomes import CLEAR, TALLY, outcome_of, refusals, refused
from textgym.errors import InvalidArgumentError
from textgym.prompts import load_prompts, read_dataset
from textgym.reward_training import load_examples
from textgym.tables import FILE_TYPES

AREA = "prompt files"


def load(path, tokenizer, column=None):
    return load_prompts(path, tokenizer, column)


def parquet_of(rows, path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


ROWS = b'{"prompt": "I was"}\n{"prompt": "This film"}\n'
BAD = {
    # JSON Lines
    "empty.jsonl": (b"", "is empty"),
    "spaces.jsonl": (b" \n\n", "is empty"),
    "words.jsonl": (b"This film\n", "line 1 is not JSON"),
    "cut.jsonl": (ROWS[:-5], "line 2 is not JSON"),
    "single_quotes.jsonl": (b"{'prompt': 'I'}\n", "line 1 is not JSON"),
    "trailing_comma.jsonl": (b'{"prompt": "I",}\n', "line 1 is not JSON"),
    "numbers.jsonl": (b"1\n2\n", "line 1 is 1; write objects"),
    "texts.jsonl": (b'"I"\n', "write objects"),
    "lists.jsonl": (b'["I"]\n', "write objects"),
    "null.jsonl": (b"null\n", "write objects"),
    "mixed.jsonl": (ROWS + b"[]\n", "line 3 is []; write objects"),
    "prompt_is_number.jsonl": (b'{"prompt": 5}\n', "each prompt is a text"),
    "prompt_is_null.jsonl": (ROWS + b'{"prompt": null}\n', "prompts[2]=None"),
    "prompt_is_list.jsonl": (b'{"prompt": ["I"]}\n', "each prompt is a text"),
    "prompt_is_missing.jsonl": (ROWS + b'{"text": "I"}\n', "prompts[2]=None"),
    "prompt_is_empty.jsonl": (ROWS + b'{"prompt": ""}\n', "prompts[2]='': is blank"),
    "prompt_is_blank.jsonl": (b'{"prompt": " \\n"}\n', "is blank"),
    "no_column.jsonl": (b"{}\n", "prompt_column"),
    "two_columns.jsonl": (b'{"a": "I", "b": "I"}\n', "choose one of the columns 'a', 'b'"),
    "latin_1.jsonl": (ROWS + '{"prompt": "caf\xe9"}\n'.encode("latin-1"), "0xe9 in line 3"),
    "utf_16.jsonl": (ROWS.decode().encode("utf-16"), "UTF-16"),
    "utf_16_without_mark.jsonl": (ROWS.decode().encode("utf-16-le"), "null character"),
    "gzip.jsonl": (gzip.compress(ROWS), "is compressed"),
    "false_gzip.jsonl": (b"\x1f\x8b" + ROWS, "is compressed"),
    "zip.jsonl": (b"PK\x03\x04" + ROWS, "is compressed"),
    "null.bytes.jsonl": (b'{"prompt": "I\0"}\n', "null character"),
    "deep.jsonl": (b"[" * 100_000 + b"]" * 100_000, "cannot be read as JSON"),
    "digits.jsonl": (b'{"prompt": ' + b"1" * 10_000 + b"}\n", "cannot be read as JSON"),
    "pickle.jsonl": (pickle.dumps({"prompt": ["I"]}), "not UTF-8"),
    # JSON
    "empty.json": (b"", "is empty"),
    "cut.json": (b'[{"prompt": "I"}, {"pro', "is not JSON"),
    "number.json": (b"7", "write a list of objects"),
    "texts.json": (b'["I", "This"]', "entry 1 of the list is 'I'"),
    "no_row.json": (b"[]", "has no row"),
    "columns.json": (b'{"prompt": ["I", "This"]}', "each prompt is a text"),
    # CSV
    "empty.csv": (b"", "is empty"),
    "header_only.csv": (b"prompt,label\n", "has no row"),
    "unclosed_quote.csv": (b'prompt\n"I was\nThis film\n', "close every quote"),
    "quote_inside.csv": (b'prompt\n"I "was" here"\n', "close every quote"),
    "too_many.csv": (b"prompt,label\nI,1,2\n", "line 2 has 3 fields"),
    "too_few.csv": (b"prompt,label\nI\n", "line 2 has 1 fields"),
    "unquoted_comma.csv": (b"prompt\nI was, it seems\n", "double quotes"),
    "same_name_twice.csv": (b"prompt,prompt\nI,This\n", "one name twice"),
    "no_name.csv": (b",prompt\n0,I\n", "an empty name"),
    "blank_prompt.csv": (b"prompt,label\n,1\n", "is blank"),
    "latin_1.csv": ("prompt\ncaf\xe9\n".encode("latin-1"), "0xe9 in line 2"),
    "utf_16.csv": ("prompt\nI\n".encode("utf-16"), "UTF-16"),
    "long_field.csv": (b"prompt\n" + b"a" * 200_000 + b"\n", "JSON Lines for long texts"),
    "no_column.csv": (b"a,b\nI,This\n", "choose one of the columns"),
    # Text
    "empty.txt": (b"", "is empty"),
    "newlines.txt": (b"\n\n", "is empty"),
    "blank_line.txt": (b"I was\n\nThis film\n", "prompts[1]='': is blank"),
    "blank_at_the_end.txt": (b"I was\n\n", "prompts[1]='': is blank"),
    "spaces.txt": (b"I was\n   \n", "is blank"),
    "latin_1.txt": ("I\ncaf\xe9\n".encode("latin-1"), "0xe9 in line 2 is not UTF-8"),
    "utf_16.txt": ("I was\n".encode("utf-16"), "UTF-16; save it in UTF-8"),
    "binary.txt": (bytes(range(256)), "is not UTF-8"),
    "null.txt": (b"I was\0\n", "line 1 has a null character"),
    # Parquet
    "empty.parquet": (b"", "not a whole Parquet file"),
    "words.parquet": (b"This film\n", "not a whole Parquet file"),
    "false.parquet": (b"PAR1" + b"x" * 100 + b"PAR1", "not a whole Parquet file"),
    "parquet.jsonl": (b"PAR1" + b"x" * 100 + b"PAR1", "name it .parquet"),
    # Names
    "prompts.doc": (ROWS, "unknown file type; use one of"),
    "prompts.jsonl.gz": (gzip.compress(ROWS), "unknown file type"),
    "prompts.pkl": (pickle.dumps(["I"]), "unknown file type"),
    "prompts.arrow": (b"ARROW1", "unknown file type"),
    "prompts": (ROWS, "unknown file type"),
    "PROMPTS.JSONL": (ROWS, "unknown file type"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_what_is_wrong_and_where(name, tmp_path, tokenizer):
    contents, message = BAD[name]
    (tmp_path / name).write_bytes(contents)
    text = refused(
        AREA, partial(load, tmp_path / name, tokenizer), "prompts", "prompt_column", match=message
    )
    assert len(text) < 700


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_bad_files_for_a_reward_model_name_the_data(ending, tmp_path):
    broken = tmp_path / f"pairs{ending}"
    broken.write_bytes(b'chosen,rejected\n"a,b\n')
    refused(AREA, partial(load_examples, broken), "data")
    refused(AREA, partial(load_examples, str(tmp_path / f"none{ending}")), "data")
    broken.write_bytes(b"")
    refused(AREA, partial(load_examples, broken), "data")


def test_a_cut_parquet_file_is_refused(tmp_path, tokenizer):
    path = tmp_path / "prompts.parquet"
    whole = parquet_of([{"prompt": "I was"}] * 50, path)
    assert len(load(path, tokenizer).prompt_ids) == 50
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(AREA, partial(load, path, tokenizer), "prompts", match="not a whole Parquet file")


def test_parquet_rows_without_texts_are_refused(tmp_path, tokenizer):
    path = tmp_path / "prompts.parquet"
    for values in ([1, 2], [None, "I"], [["I"]], [{"a": 1}], [b"I"], []):
        parquet_of([{"prompt": value} for value in values], path)
        refused(AREA, partial(load, path, tokenizer), "prompts")


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("prompts.jsonl", '\ufeff{"prompt": "I was"}\r\n\r\n{"prompt": "This film"}'),
        ("prompts.json", '\ufeff[{"prompt": "I was"}, {"prompt": "This film"}]'),
        ("prompts.csv", '\ufeffprompt,n\r\n"I was",1\r\n\r\nThis film,2\r\n'),
        ("prompts.txt", "\ufeffI was\r\nThis film"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_prompt(name, contents, tmp_path, tokenizer):
    (tmp_path / name).write_bytes(contents.encode())
    expected = load_prompts(["I was", "This film"], tokenizer).prompt_ids
    assert load(tmp_path / name, tokenizer).prompt_ids == expected


def test_values_stay_what_the_file_says(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,n\nNA,007\n"two\nlines, one ""quote""",2020-01-01\n')
    table = read_dataset(tmp_path / "a.csv")
    assert table["prompt"] == ["NA", 'two\nlines, one "quote"']
    assert table["n"] == ["007", "2020-01-01"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\u2028b", "when": "2020-01-01"}\n{"n": 1}\n')
    table = read_dataset(tmp_path / "a.jsonl")
    assert table.column_names == ["prompt", "when", "n"]
    assert list(table) == [{"prompt": "a\u2028b", "when": "2020-01-01"}, {"n": 1}]
    (tmp_path / "a.txt").write_text("a\u2028b\x0cc\nd")
    assert read_dataset(tmp_path / "a.txt")["text"] == ["a\u2028b\x0cc", "d"]


def test_places_that_are_no_file(tmp_path, tokenizer):
    places = {
        "a folder": tmp_path,
        "a folder as text": str(tmp_path),
        "missing": tmp_path / "no.jsonl",
        "missing text": "no/such/file.jsonl",
        "missing without ending": "/no/such/file",
        "home": "~/no/such/file.txt",
        "a null": "a\0b",
        "long": "x" * 5000,
        "a bad id": "who is/this one?",
        "three parts": "a/b/c",
        "a URL": "https://example.org/prompts.jsonl",
    }
    cases = {label: partial(load, place, tokenizer) for label, place in places.items()}
    refusals(AREA, cases, ["prompts"])


def test_a_column_that_nothing_reads_is_refused(tokenizer, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(ROWS)
    fixed = load_prompts(["I"], tokenizer)
    sources = {"embedded": "embedded", "texts": ["I"], "a source": fixed, "a tuple": ("I",)}
    cases = {k: partial(load, v, tokenizer, "prompt") for k, v in sources.items()}
    cases["missing"] = partial(load, path, tokenizer, "text")
    cases["empty"] = partial(load, path, tokenizer, "")
    refusals(AREA, cases, ["prompt_column"])
    assert len(load(path, tokenizer, "prompt").prompt_ids) == 2


def test_conversations_that_no_template_can_show(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{{ raise_exception('no') if messages|length > 1 else messages[0].content }}"
    )
    good = [{"role": "user", "content": "I was"}]
    cases = {
        "no template": partial(load, [good], tokenizer),
        "the template fails": partial(load, [[good[0], good[0]]], chat),
        "the last is the assistant's": partial(
            load, [[{"role": "assistant", "content": "I"}]], chat
        ),
        "no message": partial(load, [[]], chat),
        "no role": partial(load, [[{"content": "I"}]], chat),
        "mixed": partial(load, [good, "I"], chat),
    }
    refusals(AREA, cases, ["prompts"])
    assert load([good], chat).prompt_ids


def test_prompts_beyond_the_room_for_them(tiny, tmp_path):
    """The tiny models take 64 tokens."""
    (tmp_path / "long.txt").write_text("I was " * 100)
    (tmp_path / "huge.txt").write_text("film " * 20_000)
    for name in ("long.txt", "huge.txt"):
        arguments = tiny | {"prompts": tmp_path / name}
        refused(AREA, partial(gym.make, "ABC-RLHF-v0", **arguments), "max_new_tokens")
    refused(
        AREA, partial(gym.make, "ABC-RLHF-v0", **tiny | {"max_new_tokens": 200}), "max_new_tokens"
    )
    env = gym.make("ABC-RLHF-v0", **tiny)
    call = partial(env.reset, options={"prompt": "A terrible waste of time " * 3})
    refused(AREA, call, "prompt", match="has room for 1 to")


def test_words_outside_the_vocabulary():
    refused(AREA, partial(gym.make, "ABC-RLHF-Planted-v0", prompts=["the unheard word"]), "prompts")
    refused(AREA, partial(gym.make, "ABC-RLHF-v0", tokenizer="planted"), "tokenizer")


@pytest.mark.parametrize("ending", sorted(FILE_TYPES))
def test_any_bytes_give_prompts_or_a_clear_error(ending, tmp_path, tokenizer):
    path = tmp_path / f"prompts{ending}"
    pieces = st.sampled_from(
        [
            b"prompt",
            b"I was",
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b"\n",
            b"\r",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\0",
            b"null",
            b"1",
            b"\\",
            b" ",
            b"PAR1",
            b"\x1f\x8b",
            b"NaN",
            b'{"prompt": "I"}',
            b"\xe9",
            b"\xed\xa0\x80",
            b"\\ud800",
        ]
    )

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(st.one_of(st.binary(max_size=40), st.lists(pieces, max_size=12).map(b"".join)))
    def try_one(contents):
        path.write_bytes(contents)
        made = []
        outcome, error = outcome_of(lambda: made.append(load(path, tokenizer)))
        TALLY[AREA, outcome] += not made
        assert made or outcome == CLEAR, (contents, error)
        assert not made or all(made[0].prompt_ids)

    try_one()


def test_a_good_file_that_was_cut_is_refused_or_has_whole_prompts(tmp_path, tokenizer):
    whole = "".join(json.dumps({"prompt": t}) + "\n" for t in ("I was", "This film", "It is"))
    path = tmp_path / "prompts.jsonl"
    expected = load_prompts(["I was", "This film", "It is"], tokenizer).prompt_ids
    for end in range(len(whole)):
        path.write_text(whole[:end])
        try:
            ids = load(path, tokenizer).prompt_ids
        except InvalidArgumentError:
            TALLY[AREA, CLEAR] += 1
        else:
            assert ids == expected[: len(ids)]
