"""Checkpoints: complete or absent, checked when read, the last few kept."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from textgym.agents import PPO, checkpoint, load_agent
from textgym.agents.checkpoint import (
    CheckpointFolder,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from textgym.errors import InvalidArgumentError

MANY = 10**9


@pytest.fixture
def make_agent(make_model, make_vector_env, tmp_path):
    def make(**hyperparameters) -> PPO:
        settings = {"episodes_per_iteration": 4, "num_epochs": 1, "log_dir": tmp_path / "run"}
        model = hyperparameters.pop("model", None) or make_model()
        return PPO(model, make_vector_env(4), **settings | hyperparameters)

    return make


def train(agent: PPO, num_iterations: int) -> PPO:
    stop = len(agent.history) + num_iterations
    return agent.learn(MANY, callback=lambda row: row["time/iteration"] < stop)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- What is in it


def test_contents_come_back_as_they_were(tmp_path) -> None:
    tied = torch.randn(3, 2)
    contents = {
        "tensors": [tied, torch.zeros(0), torch.tensor(2.0, dtype=torch.float64), tied.t()],
        "by number": {0: {"step": torch.tensor(1.0)}, 7: None},
        "plain": {"x": 0.1 + 0.2, "text": "ä\n", "nothing": None, "flag": True, "list": [1, [2]]},
        "tied": tied,
        "generator": torch.Generator().manual_seed(3).get_state(),
    }
    write_checkpoint(tmp_path / "c", "PPO", contents)
    read = read_checkpoint(tmp_path / "c", "PPO")
    assert read.pop("plain") == contents.pop("plain")
    assert read["by number"].pop(7) is contents["by number"].pop(7) is None
    torch.testing.assert_close(read, contents, rtol=0, atol=0)


def test_tied_weights_are_stored_once(make_agent, make_model, tmp_path) -> None:
    agent = make_agent(model=make_model("gpt2"))  # its embeddings are tied
    agent.save(tmp_path / "agent")
    sizes = sum(p.numel() for p in agent.policy.parameters())
    stored = (tmp_path / "agent" / "training.safetensors").stat().st_size / 4
    assert stored < 2.2 * sizes + 10_000  # policy and reference policy, no optimizer state yet
    assert load_agent(tmp_path / "agent").policy.model.transformer.wte.weight.shape[0] == 20


def test_transformers_loads_the_policy_from_it(make_agent, tmp_path) -> None:
    agent = train(make_agent(), 1)
    agent.save(tmp_path / "agent")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "agent")
    for name, weights in agent.policy.model.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name])


class Own(Qwen3ForCausalLM):
    """A class that Transformers does not know."""


def test_what_it_cannot_hold_is_refused_before_the_training(make_agent, make_model, tmp_path):
    agent = make_agent(model=Own(make_model().config), save_every=1)
    with pytest.raises(InvalidArgumentError, match=r"^policy='Own': a checkpoint cannot hold it"):
        train(agent, 1)
    with pytest.raises(InvalidArgumentError, match=r"^policy='Own': a checkpoint cannot hold it"):
        agent.save(tmp_path / "agent")
    assert not agent.history


def test_there_is_no_pickle_in_it(make_agent, tmp_path) -> None:
    make_agent().save(tmp_path / "agent")
    assert {Path(name).suffix for name in names(tmp_path / "agent")} == {".json", ".safetensors"}


# --- Complete, or not there


def save_again(agent: PPO, path: Path) -> None:
    train(agent, 1)
    agent.save(path)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_process_that_dies_while_writing_leaves_a_whole_checkpoint(
    make_agent, tmp_path, monkeypatch, number
) -> None:
    """Die in the number-th call that changes something on the disk, without any clean-up."""
    path = tmp_path / "agent"
    agent = train(make_agent(), 1)
    agent.save(path)
    left = number

    def dying(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left <= 0:  # A dead process does nothing more, not even in `finally`.
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", dying(os.fsync))
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(checkpoint.shutil, "rmtree", dying(checkpoint.shutil.rmtree))
        train(agent, 1)
        try:
            agent.save(path)
        except KeyboardInterrupt:
            assert left <= 0
    assert len(load_agent(path).history) in (1, 2)
    save_again(agent, path)  # What is left of the dead process does not disturb the next one.
    assert len(load_agent(path).history) == 3
    assert [name for name in names(tmp_path) if "agent" in name] == ["agent"]


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_half(
    make_agent, tmp_path, monkeypatch
) -> None:
    agent = train(make_agent(), 1)
    agent.save(tmp_path / "agent")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    train(agent, 1)
    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        agent.save(tmp_path / "agent")
    assert len(load_agent(tmp_path / "agent").history) == 1
    assert names(tmp_path) == ["agent", "run"]


def test_a_file_that_may_not_grow_is_an_os_error(make_agent, tmp_path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    agent, before = make_agent(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            agent.save(tmp_path / "agent")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_what_is_no_checkpoint_is_not_replaced(make_agent, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(InvalidArgumentError, match=r"^path=.*is no checkpoint"):
        make_agent().save(tmp_path / "photos")
    assert names(tmp_path / "photos") == ["cat.png"]


# --- Damaged


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize(
    "name", ["training.safetensors", "training.json", "model.safetensors", "checksums.json"]
)
def test_damage_is_one_clear_error(make_agent, tmp_path, name, damage) -> None:
    make_agent().save(tmp_path / "agent")
    damage(tmp_path / "agent" / name)
    with pytest.raises(InvalidArgumentError, match=rf"^path=.*{name}|checksum"):
        PPO.load(tmp_path / "agent")


# --- A run's own


def test_a_run_keeps_its_last_checkpoints(make_agent, tmp_path) -> None:
    train(make_agent(save_every=2, save_total_limit=2), 7)
    assert names(tmp_path / "run" / "checkpoints") == ["0000004", "0000006"]
    assert len(load_agent(tmp_path / "run").history) == 6


def test_a_run_in_a_folder_of_its_own_name_goes_on_there(
    make_agent, make_vector_env, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(make_agent(log_dir=None, save_every=1), 1).log_dir
    resumed = train(PPO.load(run, make_vector_env(4)), 1)
    assert resumed.log_dir == run
    assert names(run / "checkpoints") == ["0000001", "0000002"]
    assert names(tmp_path / "runs") == [run.name]


def test_a_run_that_goes_on_from_an_earlier_checkpoint_leaves_the_later_ones_behind(
    make_agent, make_vector_env, tmp_path
) -> None:
    """As after a divergence. Otherwise the next load would find what was left."""
    folder = tmp_path / "run" / "checkpoints"
    train(make_agent(save_every=2, save_total_limit=3), 6)
    train(PPO.load(folder / "0000002", make_vector_env(4), save_every=1), 1)
    assert names(folder) == ["0000002", "0000003"]
    assert find_checkpoint(tmp_path / "run").name == "0000003"


def test_checkpoints_by_the_clock(make_agent, tmp_path, monkeypatch) -> None:
    agent = make_agent(save_minutes=10.0)
    now = 0.0

    def monotonic() -> float:
        return now

    monkeypatch.setattr("textgym.agents.agent.time.monotonic", monotonic)

    def callback(row) -> bool:
        nonlocal now
        now += 240.0  # four minutes an iteration
        return row["time/iteration"] < 7

    agent.learn(MANY, callback=callback)
    assert names(tmp_path / "run" / "checkpoints") == ["0000004", "0000007"]


def test_checkpoints_come_as_often_when_training_is_called_again_and_again(
    make_agent, tmp_path
) -> None:
    agent = make_agent(save_every=2)
    for _ in range(5):
        agent.learn(1)
    assert names(tmp_path / "run" / "checkpoints") == ["0000002", "0000004"]


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(make_agent, tmp_path) -> None:
    train(make_agent(save_every=1), 3)
    flip(tmp_path / "run" / "checkpoints" / "0000003" / "training.safetensors")
    with pytest.warns(RuntimeWarning, match=r"0000003 is damaged .*training\.safetensors"):
        path = find_checkpoint(tmp_path / "run")
    assert path.name == "0000002"


def test_a_run_whose_checkpoints_are_all_damaged_has_none(make_agent, tmp_path) -> None:
    train(make_agent(save_every=1), 1)
    cut(tmp_path / "run" / "checkpoints" / "0000001" / "training.json")
    with (
        pytest.warns(RuntimeWarning, match="damaged"),
        pytest.raises(InvalidArgumentError, match=r"^path=.*no checkpoint"),
    ):
        load_agent(tmp_path / "run")


def test_checkpoints_of_two_runs_do_not_mix(make_agent) -> None:
    train(make_agent(save_every=1), 1)
    with pytest.raises(InvalidArgumentError, match=r"^log_dir=.*earlier run"):
        train(make_agent(save_every=1), 1)


def test_a_new_agent_does_not_delete_the_checkpoints_of_another(make_agent, tmp_path) -> None:
    train(make_agent(save_every=1), 3)
    before = names(tmp_path / "run" / "checkpoints")
    agent = train(make_agent(log_dir=tmp_path / "run"), 1)
    with pytest.raises(InvalidArgumentError, match=r"^log_dir=.*earlier run"):
        agent.save_numbered()
    assert names(tmp_path / "run" / "checkpoints") == before


def test_a_loaded_agent_does_not_delete_the_checkpoints_of_another_run(
    make_agent, make_vector_env, tmp_path
) -> None:
    train(make_agent(log_dir=tmp_path / "other", save_every=1), 3)
    train(make_agent(save_every=1), 1)
    before = names(tmp_path / "other" / "checkpoints")
    loaded = PPO.load(tmp_path / "run", make_vector_env(4), log_dir=tmp_path / "other")
    with pytest.raises(InvalidArgumentError, match=r"^log_dir=.*earlier run"):
        train(loaded, 1)
    assert names(tmp_path / "other" / "checkpoints") == before


def test_a_run_that_was_moved_goes_on_in_its_new_folder(
    make_agent, make_vector_env, tmp_path
) -> None:
    train(make_agent(save_every=1), 1)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    train(PPO.load(moved, make_vector_env(4), log_dir=moved), 1)
    assert names(moved / "checkpoints") == ["0000001", "0000002"]


def test_a_checkpoint_from_before_the_first_iteration_is_gone_on_from(
    make_agent, make_vector_env, tmp_path
) -> None:
    agent = make_agent(save_every=1)
    agent.save_numbered()
    loaded = PPO.load(tmp_path / "run", make_vector_env(4))
    train(loaded, 1)
    assert names(tmp_path / "run" / "checkpoints") == ["0000000", "0000001"]
    train(agent, 1)  # Its checkpoints are its own, too.


def test_only_whole_numbered_checkpoints_are_seen(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    (tmp_path / "checkpoints" / ".0000001.old").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".0000002.unfinished").mkdir()
    (tmp_path / "checkpoints" / "0000003-copy").mkdir()
    assert folder.all() == []


def test_a_resumed_run_continues_its_log(make_agent, make_vector_env, tmp_path) -> None:
    whole = train(make_agent(log_dir=tmp_path / "whole"), 5)
    train(make_agent(save_every=2), 3)  # The third iteration is lost.
    resumed = PPO.load(tmp_path / "run", make_vector_env(4))
    assert resumed.log_dir == tmp_path / "run"
    train(resumed, 3)
    logs = []
    for log_dir in (whole.log_dir, resumed.log_dir):
        rows = map(json.loads, (log_dir / "metrics.jsonl").read_text().splitlines())
        logs.append([{k: v for k, v in row.items() if k != "time/seconds"} for row in rows])
    assert logs[0] == logs[1]


def test_a_full_disk_leaves_no_half_line_in_the_log(make_agent, tmp_path) -> None:
    agent = train(make_agent(), 1)
    from textgym.agents.metrics import MetricsLog

    class Full:
        name = "metrics.jsonl"

        def __init__(self, file) -> None:
            self.file = file

        def write(self, line: bytes) -> int:
            return self.file.write(line[:10])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with MetricsLog(tmp_path / "log", {}, agent.history) as log:
        log._file = Full(log._file)
        with pytest.raises(OSError, match="No space left"):
            log.write(agent.history[0])
    lines = (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == agent.history
