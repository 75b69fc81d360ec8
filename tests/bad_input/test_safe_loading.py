"""Nothing that is loaded runs code: a pickle that leaves a mark is planted in every file.

What is promised, and what is not, is in SECURITY.md.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.bad_input.outcomes import CLEAR, TALLY, outcome_of
from textgym.agents import PPO, load_agent
from textgym.agents.checkpoint import CHECKSUMS, TENSORS, VALUES, _checksum
from textgym.benchmark.storage import read_rows
from textgym.cli import main
from textgym.credit import ReferenceValue, get_credit_assigner
from textgym.models import load_language_model, load_reward_model, load_tokenizer
from textgym.prompts import load_prompts
from textgym.reward_training import load_examples
from textgym.reward_training.training import load_base

AREA = "planted pickles"
ROOT = Path(__file__).parents[2]


class Mark:
    """Leaves a mark when it is unpickled: the file exists then."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def pickles(mark):
    """A pickle that leaves a mark in the forms in which weights and tables are pickled."""
    plain = pickle.dumps(Mark(mark))
    legacy, archive = io.BytesIO(), io.BytesIO()
    torch.save({"weight": Mark(mark)}, legacy, _use_new_zipfile_serialization=False)
    torch.save({"weight": Mark(mark)}, archive)
    return {"plain": plain, "torch's old format": legacy.getvalue(), "torch's": archive.getvalue()}


def is_harmless(call, mark, refuses=True):
    """Call, count, and fail if the mark is there or the call went through."""
    outcome, error = outcome_of(call)
    assert not mark.exists(), "the pickle ran"
    TALLY[AREA, outcome] += outcome == CLEAR
    assert outcome == CLEAR or not refuses, repr(error)


@pytest.mark.parametrize("form", ["plain", "torch's old format", "torch's"])
def test_the_planted_pickle_runs_where_pickles_are_read(form, tmp_path, mark):
    """Without this, the other tests could pass with a pickle that is broken."""
    path = tmp_path / "file"
    path.write_bytes(pickles(mark)[form])
    if form == "plain":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.fixture
def folders(tmp_path, language_model, classifier, tokenizer):
    for name, model in (("language_model", language_model), ("reward_model", classifier)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


WEIGHTS = [
    "pytorch_model.bin",
    "model.safetensors",
    "pytorch_model-00001-of-00001.bin",
    "adapter_model.bin",
]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("form", ["plain", "torch's old format", "torch's"])
def test_weights_of_a_model_folder(name, form, folders, mark, envs):
    for kind in ("language_model", "reward_model"):
        folder = folders / kind
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickles(mark)[form])
        if "of" in name:
            index = {"metadata": {}, "weight_map": {"model.norm.weight": name}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        if "adapter" in name:
            (folder / "adapter_config.json").write_text(
                json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 4})
            )
        load = load_language_model if kind == "language_model" else load_reward_model
        is_harmless(partial(load, folder), mark)
    is_harmless(partial(PPO, folders / "language_model", envs), mark)
    is_harmless(partial(load_base, folders / "language_model", 2), mark)


@pytest.mark.parametrize("form", ["plain", "torch's old format", "torch's"])
def test_adapters_beside_whole_weights(form, folders, mark):
    for kind, load in {
        "language_model": load_language_model,
        "reward_model": load_reward_model,
    }.items():
        (folders / kind / "adapter_model.bin").write_bytes(pickles(mark)[form])
        (folders / kind / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folders / kind)})
        )
        is_harmless(partial(load, folders / kind), mark)


def test_a_pickle_beside_safetensors_is_not_read(folders, mark):
    (folders / "language_model" / "pytorch_model.bin").write_bytes(pickles(mark)["torch's"])
    (folders / "language_model" / "training_args.bin").write_bytes(pickles(mark)["plain"])
    load_language_model(folders / "language_model")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "config.json", "tokenizer.model", "vocab.pkl"],
)
def test_other_files_of_a_model_folder(name, folders, mark):
    is_read = name.endswith(".json")
    for kind in ("language_model", "reward_model"):
        (folders / kind / name).write_bytes(pickles(mark)["plain"])
    for load, kind in (
        (load_tokenizer, "language_model"),
        (load_language_model, "language_model"),
        (load_reward_model, "reward_model"),
    ):
        is_harmless(
            partial(load, folders / kind), mark, refuses=is_read and load is not load_language_model
        )


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_folder_is_not_run(where, folders, mark):
    code = (
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\nConfig = Model = Tokenizer = int\n"
    )
    for kind in ("language_model", "reward_model"):
        folder = folders / kind
        (folder / "own.py").write_text(code)
        config = json.loads((folder / where).read_text())
        config["auto_map"] = {
            "AutoConfig": "own.Config",
            "AutoModelForCausalLM": "own.Model",
            "AutoModelForSequenceClassification": "own.Model",
            "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"],
        }
        config["model_type"] = "own"
        config["tokenizer_class"] = "Tokenizer"
        (folder / where).write_text(json.dumps(config))
    for load, kind in (
        (load_tokenizer, "language_model"),
        (load_language_model, "language_model"),
        (load_reward_model, "reward_model"),
    ):
        is_harmless(partial(load, folders / kind), mark, refuses=False)
    is_harmless(partial(load_base, folders / "language_model", 2), mark, refuses=False)


def test_checkpoints(tmp_path, mark, language_model, envs):
    """A pickle instead of each file of a checkpoint, with a checksum that fits it."""
    settings = {"episodes_per_iteration": 2, "minibatch_size": 2, "log_dir": tmp_path / "run"}
    whole = PPO(language_model, envs, **settings).save_numbered()
    names = [file.name for file in whole.iterdir() if file.name != CHECKSUMS]
    for name in (*names, CHECKSUMS, "pytorch_model.bin", "training.pt"):
        for data in pickles(mark).values():
            path = tmp_path / "planted" / "checkpoints" / whole.name
            shutil.copytree(whole, path, dirs_exist_ok=True)
            (path / name).write_bytes(data)
            if name != CHECKSUMS:
                checksums = json.loads((path / CHECKSUMS).read_text())
                checksums[name] = _checksum(path / name)
                (path / CHECKSUMS).write_text(json.dumps(checksums))
            is_read = name in (TENSORS, VALUES, CHECKSUMS)
            for load in (PPO.load, load_agent):
                is_harmless(partial(load, path), mark, refuses=is_read)
            if is_read:
                assert main(["evaluate", "--checkpoint", str(path)]) == 2
            assert not mark.exists()


@pytest.mark.parametrize(
    "ending", [".jsonl", ".json", ".csv", ".txt", ".parquet", ".pkl", ".arrow"]
)
def test_prompt_and_data_files(ending, tmp_path, mark, tokenizer):
    path = tmp_path / f"data{ending}"
    for data in pickles(mark).values():
        path.write_bytes(data)
        is_harmless(partial(load_prompts, path, tokenizer), mark)
        is_harmless(partial(load_examples, path), mark)


def test_parquet_files_that_name_a_pickled_type(tmp_path, mark, tokenizer):
    """Old versions of pyarrow unpickled the metadata of extension types (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickles(mark)["plain"],
    }
    field = pa.field("prompt", pa.string(), metadata=metadata)
    table = pa.table([pa.array(["I was", "This film"])], schema=pa.schema([field]))
    path = tmp_path / "data.parquet"
    pq.write_table(table, path)
    is_harmless(partial(load_prompts, path, tokenizer), mark, refuses=False)
    is_harmless(partial(load_examples, path), mark)
    is_harmless(partial(read_rows, path), mark, refuses=False)


def test_folders_of_pickles_are_no_data(tmp_path, mark, tokenizer):
    """The library datasets would choose a reader by the files that it finds."""
    (tmp_path / "data").mkdir()
    for name in ("train.pkl", "train.pickle", "train.pt", "train.py"):
        (tmp_path / "data" / name).write_bytes(pickles(mark)["plain"])
    is_harmless(partial(load_prompts, tmp_path / "data", tokenizer), mark)
    is_harmless(partial(load_prompts, str(tmp_path / "data"), tokenizer), mark)


def test_results_of_a_benchmark(tmp_path, mark):
    for name in ("runs.parquet", "runs.csv"):
        for data in pickles(mark).values():
            (tmp_path / name).write_bytes(data)
            is_harmless(partial(read_rows, tmp_path / name), mark, refuses=False)


def test_reference_values_and_credit_by_name(tmp_path, mark, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for label, data in pickles(mark).items():
        path = tmp_path / "value.safetensors"
        path.write_bytes(data)
        is_harmless(partial(ReferenceValue.load, path), mark)
        name = f"own_{len(label)}"
        for ending in ("pkl", "pyc", "so"):
            (tmp_path / f"{name}.{ending}").write_bytes(data)
        is_harmless(partial(get_credit_assigner, f"{name}:mine"), mark)
        is_harmless(partial(load_reward_model, f"{name}:mine"), mark)


def test_a_module_by_name_runs_as_the_user_asked(tmp_path, monkeypatch, mark):
    """By design, as SECURITY.md says: the name of a module is the user's own code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_credit_code.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    )
    outcome_of(partial(get_credit_assigner, "own_credit_code:mine"))
    assert mark.exists()


# What the source says


def calls_of(*names):
    """Every call of a function or method with one of these names in the package."""
    for path in [*ROOT.glob("textgym/**/*.py"), *ROOT.glob("agents/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                name = (
                    called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                )
                if name in names:
                    yield path, node, ast.unparse(called)


def keyword(node, name):
    return next((ast.unparse(one.value) for one in node.keywords if one.arg == name), None)


def test_nothing_is_read_by_torch_load():
    """Which can read pickles, if it is told to."""
    assert [node for _, node, called in calls_of("load") if called == "torch.load"] == []


def test_transformers_reads_safetensors_only_and_runs_no_code():
    """Tokenizers and configs have no weights; nobody asks for code from a model's author."""
    found = list(calls_of("from_pretrained"))
    assert len(found) > 3
    for path, node, called in found:
        assert keyword(node, "trust_remote_code") in (None, "False"), path
        if not called.startswith(("AutoTokenizer", "AutoConfig")):
            assert keyword(node, "use_safetensors") == "True", (path, called)


def test_nothing_in_the_package_unpickles():
    modules = ("pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve")
    for path, _, called in calls_of("load", "loads", "Unpickler", "read_pickle", "exec", "eval"):
        assert called.split(".")[0] not in modules, (path, called)
        assert called not in ("exec", "eval", "pd.read_pickle"), (path, called)
