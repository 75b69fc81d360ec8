"""Two processes of torchrun, on this machine, with gloo: are they worth one?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launched
import pytest
import torch
from torch.nn.functional import pad

from textgym.agents import PPO, Processes, Rollout, groups, ppo
from textgym.agents.checkpoint import read_checkpoint
from textgym.agents.losses import Batch
from textgym.errors import InvalidArgumentError

NAMES = list(launched.AGENT_KWARGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, launched.__file__, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def seen(folder) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def together(parts: list[dict[str, Any]]) -> Rollout:
    """The rollouts of two processes as one; prompts are padded on the left."""
    prompts = [p["input_ids"].shape[1] - p["completion_mask"].shape[1] for p in parts]
    steps = [p["completion_mask"].shape[1] for p in parts]
    joined: dict[str, Any] = {}
    for name, value in parts[0].items():
        if isinstance(value, list):
            joined[name] = value + parts[1][name]
            continue
        rows = []
        for part, num_prompt, num_steps in zip(parts, prompts, steps, strict=True):
            left = max(prompts) - num_prompt if name in ("input_ids", "attention_mask") else 0
            right = max(steps) - num_steps
            rows.append(pad(part[name], (left, right)) if part[name].ndim > 1 else part[name])
        joined[name] = torch.cat(rows)
    return Rollout(**joined)


def paired_minibatches(
    self: Batch, num_epochs: int, minibatch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """The minibatches that two processes take together, each from its half of the episodes."""
    half = len(self.input_ids) // 2
    for _ in range(num_epochs):
        for own in torch.randperm(half, generator=generator).split(minibatch_size // 2):
            yield self.minibatch(torch.cat([own, half + own]))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_equals_that_of_one_process_on_the_same_episodes(
    name, seen, monkeypatch, tmp_path
) -> None:
    rollout = together([one[name]["rollout"] for one in seen])
    lengths = rollout.episode_lengths
    assert lengths[:4].sum() != lengths[4:].sum()  # so means over tokens are not means of means
    monkeypatch.setattr(Batch, "minibatches", paired_minibatches)
    for module in (ppo, groups):
        monkeypatch.setattr(module, "collect_episodes", lambda *args, **kwargs: rollout)
    agent = launched.make_agent(name, tmp_path, num_envs=4)
    start = launched.weights(agent)
    launched.train(agent, 1)

    # The generators differ by the draws of the rollout, which minibatches do not see.
    moved = 0.0
    for key, expected in launched.weights(agent).items():
        torch.testing.assert_close(seen[0][name]["weights"][key], expected, atol=2e-6, rtol=1e-4)
        moved = max(moved, (expected - start[key]).abs().max().item())
    assert moved > 1e-2
    row = {k: v for k, v in agent.history[0].items() if k != "time/seconds"}
    assert {k: seen[0][name]["row"][k] for k in row} == pytest.approx(row, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "unbroken"])
def test_all_processes_end_with_the_same_weights(name, seen) -> None:
    first, second = (one[name]["weights"] for one in seen)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_processes_play_other_episodes_of_the_prompts_of_a_single_one(seen, tmp_path) -> None:
    halves = [together([one["ppo"]["rollout"]] * 2) for one in seen]
    assert not torch.equal(halves[0].completion_mask, halves[1].completion_mask)
    agent = launched.make_agent("ppo", tmp_path, num_envs=4)
    rollout = ppo.collect_episodes(
        agent.policy,
        agent.env,
        8,
        agent._generators["tokens"],
        agent._generators["episodes"],
    )
    both = together([one["ppo"]["rollout"] for one in seen])
    prompts = [r.input_ids[:, : -r.completion_mask.shape[1]] for r in (rollout, both)]
    assert torch.equal(*prompts)


def test_the_weight_of_the_kl_penalty_is_equal_everywhere(seen) -> None:
    first, second = (one["unbroken"]["kl_coef"] for one in seen)
    assert first == second != PPO.config_class().kl_coef


def test_a_run_resumed_at_two_equals_an_unbroken_one(seen) -> None:
    for one in seen:
        assert one["resumed"]["history"] == one["unbroken"]["history"]
        weights = one["resumed"]["weights"]
        assert all(torch.equal(weights[k], v) for k, v in one["unbroken"]["weights"].items())


def test_a_run_of_two_goes_on_with_one(folder, seen, make_vector_env, recorded) -> None:
    agent = PPO.load(folder / "broken-0", make_vector_env(4), log_dir=folder / "alone")
    assert len(agent.history) == 2
    rollouts = recorded(ppo, "collect_episodes")
    launched.train(agent, 2)
    # The prompts of its last iteration are those of the two processes, one after the other.
    rollout = rollouts[-1].result
    prompts = rollout.input_ids[:, : -rollout.completion_mask.shape[1]]
    width = max(one["prompts"].shape[1] for one in seen)
    both = torch.cat([pad(one["prompts"], (width - one["prompts"].shape[1], 0)) for one in seen])
    assert torch.equal(prompts, both)


def test_sharded_training_equals_that_with_a_copy_in_each_process(seen) -> None:
    for one in seen:
        whole, sharded = one["shard False"], one["shard True"]
        torch.testing.assert_close(sharded["weights"], whole["weights"], atol=1e-5, rtol=1e-4)
        assert sharded["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_a_process_holds_about_half_of_sharded_weights(seen) -> None:
    parts = [one["shard True"]["numbers"] for one in seen]
    whole = seen[0]["shard False"]["numbers"]
    assert sum(parts) == whole
    assert max(parts) < 0.51 * whole


def test_a_sharded_run_goes_on_alone(folder, seen, make_vector_env) -> None:
    contents = read_checkpoint(folder / "saved-True", "PPO")
    assert contents["hyperparameters"]["shard"]
    agent = PPO.load(
        folder / "saved-True", make_vector_env(4), log_dir=folder / "alone", shard=False
    )
    for key, weights in launched.weights(agent).items():
        assert torch.equal(weights, contents["policy"][key])
    launched.train(agent, 1)


def test_a_sharded_policy_is_exported_whole(folder, seen) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "exported-True")
    weights = seen[0]["shard True"]["weights"]
    assert all(torch.equal(t, weights[f"model.{k}"]) for k, t in model.state_dict().items())


def test_a_single_process_cannot_shard(tmp_path) -> None:
    with pytest.raises(InvalidArgumentError, match="torchrun"):
        launched.make_agent("ppo", tmp_path, num_envs=4, shard=True)


def test_only_the_main_process_writes(folder, seen) -> None:
    assert not (folder / "broken-1").exists()
    rows = (folder / "unbroken" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["time/iteration"] for row in rows] == [1, 2, 3, 4]


def test_training_stops_everywhere_when_one_callback_says_so(seen) -> None:
    assert [one["callbacks"] for one in seen] == [[1, 2, 3, 4]] * 2


def test_weights_are_those_of_the_main_process(seen) -> None:
    assert torch.equal(seen[0]["layer"], seen[1]["layer"])


def test_a_critics_own_network_is_the_same_in_all_processes(seen) -> None:
    assert torch.equal(seen[0]["critic"], seen[1]["critic"])


def test_gradients_are_averaged_and_missing_ones_count_as_0(seen) -> None:
    for one in seen:
        weight, bias, unused = one["gradients"]
        assert weight.tolist() == [[0.5] * 3] * 2
        assert bias.tolist() == [1.0, 3.0]
        assert unused is None


def test_a_mean_over_tokens_counts_every_token_once(seen) -> None:
    for one in seen:
        assert one["all"].tolist() == [0, 1, 2, 3, 4, 10]
        assert one["mean"].item() == pytest.approx(20 / 6)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("episodes_per_iteration", {"num_envs": 4, "episodes_per_iteration": 12}),
        ("episodes_per_iteration", {"num_envs": 1, "group_size": 3, "episodes_per_iteration": 6}),
        ("minibatch_size", {"num_envs": 4, "minibatch_size": 3}),
        ("group_size", {"num_envs": 4, "critic": "none"}),
    ],
)
def test_work_that_cannot_be_divided_is_refused(argument, changes, monkeypatch, tmp_path) -> None:
    two = Processes(rank=0, size=2)
    monkeypatch.setattr(Processes, "current", lambda device: two)
    monkeypatch.setattr(two, "synchronize", lambda module: None)
    monkeypatch.setattr(two, "of_main", lambda value: value)
    if changes.get("group_size") == 3:  # 6 episodes are 2 groups for 4 processes
        two.size = 4
    with pytest.raises(InvalidArgumentError) as error:
        launched.make_agent("ppo", tmp_path, **changes)
    assert error.value.argument == argument
    assert "processes" in str(error.value)
