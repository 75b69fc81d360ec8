"""Checkpoints: cut, changed, of another class, with other shapes or without a part."""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_input.outcomes import CLEAR, TALLY, outcome_of, refusals, refused
from textgym.agents import GRPO, PPO, RLOO, load_agent
from textgym.agents.checkpoint import (
    CHECKSUMS,
    TENSORS,
    VALUES,
    _checksum,
    read_checkpoint,
    write_checkpoint,
)

AREA = "checkpoints"


@pytest.fixture(scope="module")
def agent(language_model, envs, tmp_path_factory):
    """An agent with an optimizer that has a state."""
    made = PPO(
        language_model,
        envs,
        episodes_per_iteration=2,
        minibatch_size=2,
        num_epochs=1,
        log_dir=tmp_path_factory.mktemp("log"),
    )
    return made.learn(1)


@pytest.fixture(scope="module")
def file(agent, tmp_path_factory):
    """A whole checkpoint; leave it as it is."""
    path = tmp_path_factory.mktemp("checkpoints") / "whole"
    agent.save(path)
    return path


@pytest.fixture(scope="module")
def contents(file):
    return read_checkpoint(file, "PPO")


def load_changed(path, contents):
    write_checkpoint(path, "PPO", contents)
    return PPO.load(path)


def test_a_whole_checkpoint_is_read(file, contents, tmp_path):
    assert PPO.load(file).num_timesteps == load_changed(tmp_path / "a", contents).num_timesteps


def test_a_checkpoint_without_one_of_its_parts(contents, tmp_path):
    optional = {"base_model"}  # without adapters it is a remark
    cases = {
        f"without {name}": partial(
            load_changed,
            tmp_path / "a",
            {key: value for key, value in contents.items() if key != name},
        )
        for name in contents.keys() - optional
    }
    refusals(AREA, cases, ["path"])


WRONG = {
    "None": None,
    "text": "abc",
    "number": 1.5,
    "list": [],
    "dict": {},
    "tensor": torch.zeros(2),
}


def test_a_checkpoint_with_another_value_for_a_part(contents, tmp_path):
    cases = {
        f"{name} is {label}": partial(load_changed, tmp_path / "a", contents | {name: value})
        for name in contents
        for label, value in WRONG.items()
    }
    accepted = {
        "base_model is None": "the policy was a loaded object",
        "history is list": "nothing was trained yet",
        "seconds is number": "a number of seconds",
        "hyperparameters is dict": "older files lack newer ones, which get their defaults",
    }
    accepted |= {f"critic is {label}": "the critic of this agent has no state" for label in WRONG}
    for label in (
        "base_model is text",
        "base_model is number",
        "base_model is list",
        "base_model is dict",
        "base_model is tensor",
    ):
        accepted[label] = "without adapters it is a remark, which nothing reads"
    refusals(AREA, cases, ["path"], accepted)


def other_shapes(contents):
    """Copies of a checkpoint in which one tensor has another shape, by the tensor's name."""
    for part in ("policy", "ref_policy"):
        for name in list(contents[part])[:4] + list(contents[part])[-3:]:
            changed = copy.deepcopy(contents)
            changed[part][name] = torch.zeros(3, 5)
            yield f"{part}.{name}", changed
    for index in (0, 1):
        for name in ("exp_avg", "exp_avg_sq"):
            changed = copy.deepcopy(contents)
            changed["optimizer"]["state"][index][name] = torch.zeros(3, 5)
            yield f"optimizer.{index}.{name}", changed
    changed = copy.deepcopy(contents)
    changed["optimizer"]["param_groups"][0]["params"].pop()
    yield "optimizer without a parameter", changed
    changed = copy.deepcopy(contents)
    changed["generators"]["tokens"] = torch.zeros(3, dtype=torch.uint8)
    yield "a generator's state of three bytes", changed
    changed = copy.deepcopy(contents)
    changed["generators"]["another"] = changed["generators"]["tokens"]
    yield "a generator too many", changed


def test_other_shapes(contents, tmp_path):
    cases = {
        label: partial(load_changed, tmp_path / "a", changed)
        for label, changed in other_shapes(contents)
    }
    refusals(AREA, cases, ["path"])


def test_weights_that_mean_nothing(contents, tmp_path):
    for value in (float("nan"), float("inf")):
        changed = copy.deepcopy(contents)
        next(iter(changed["policy"].values())).view(-1)[0] = value
        refused(AREA, partial(load_changed, tmp_path / "a", changed), "path", match="diverged")


def test_hyperparameters_that_do_not_exist_or_fit(contents, tmp_path):
    for changes in ({"colour": "red"}, {"gamma": 7}, {"seed": "x"}, {"device": "abacus"}):
        hyperparameters = contents["hyperparameters"] | changes
        changed = contents | {"hyperparameters": hyperparameters}
        refused(AREA, partial(load_changed, tmp_path / "a", changed), *changes)


def test_another_class_or_format(file, contents, tmp_path):
    cases = {agent.__name__: partial(agent.load, file) for agent in (RLOO, GRPO)}
    for label, form in {
        "no format": None,
        "another agent": "textgym-sac-2",
        "another version": "textgym-ppo-99",
    }.items():
        path = tmp_path / label
        write_checkpoint(path, "PPO", contents)
        values = json.loads((path / VALUES).read_text()) | {"format": form}
        (path / VALUES).write_text(json.dumps(values))
        checksums = json.loads((path / CHECKSUMS).read_text()) | {VALUES: _checksum(path / VALUES)}
        (path / CHECKSUMS).write_text(json.dumps(checksums))
        cases |= {f"{label}, load": partial(PPO.load, path)}
        cases |= {f"{label}, load_agent": partial(load_agent, path)}
    for label, thing in {
        "a list": [1],
        "a tensor": torch.zeros(2),
        "weights": contents["policy"],
    }.items():
        path = tmp_path / label
        write_checkpoint(path, "PPO", thing)
        cases[label] = partial(PPO.load, path)
        cases[f"{label}, load_agent"] = partial(load_agent, path)
    refusals(AREA, cases, ["path"])


def test_files_that_are_no_checkpoint(tmp_path, language_model):
    language_model.save_pretrained(tmp_path / "model")
    made = {
        "empty": b"",
        "words": b"This is no checkpoint.",
        "a pickle": pickle.dumps({"format": "textgym-ppo-1"}),
        "safetensors": (tmp_path / "model" / "model.safetensors").read_bytes(),
        "zeros": bytes(1000),
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    }
    old = io.BytesIO()
    torch.save({"format": "textgym-ppo-1"}, old, _use_new_zipfile_serialization=False)
    made["the old format of torch"] = old.getvalue()
    cases = {}
    for label, data in made.items():
        (tmp_path / label).write_bytes(data)
        cases[label] = partial(PPO.load, tmp_path / label)
        cases[f"{label}, load_agent"] = partial(load_agent, tmp_path / label)
    refusals(AREA, cases, ["path"])


@pytest.mark.parametrize("name", [TENSORS, VALUES, CHECKSUMS, "model.safetensors"])
def test_a_cut_or_changed_file_is_refused_or_means_the_same(file, tmp_path, agent, name):
    """White space between checksums may change without harm."""
    shutil.copytree(file, tmp_path / "changed")
    whole, path = (file / name).read_bytes(), tmp_path / "changed"
    weight = agent.policy.model.get_output_embeddings().weight

    @settings(max_examples=15, deadline=None, database=None, derandomize=True)
    @given(st.floats(0, 1, exclude_max=True), st.booleans(), st.integers(1, 255))
    def try_one(place, is_cut, change):
        at = int(place * len(whole))
        changed = (
            whole[:at] if is_cut else whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :]
        )
        (path / name).write_bytes(changed)
        made = []
        outcome, error = outcome_of(lambda: made.append(PPO.load(path)), ["path"])
        TALLY[AREA, outcome] += not made
        assert made or outcome == CLEAR, (at, is_cut, error)
        for loaded in made:
            assert name == CHECKSUMS
            assert not is_cut
            assert torch.equal(loaded.policy.model.get_output_embeddings().weight, weight)

    try_one()
