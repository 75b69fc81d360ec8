"""The parts of throughput.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reports.throughput import make_goals
from speed import environment, lean, models, peers, sb3, stages
from speed.operations import forward_operations, update_operations
from speed.race import reached
from speed.update import Updater, random_episodes
from torch.utils.flop_counter import FlopCounterMode

import textgym.agents.ppo as ppo
from textgym.agents import PPOConfig


@pytest.mark.parametrize("name", ["gpt2-small", "llama-4x256"])
def test_operations_are_those_that_pytorch_counts(name):
    updater = Updater(models.language_model(name, quick=True))
    episodes = random_episodes(4, 12, 5)
    with FlopCounterMode(display=False) as counter:
        updater.update(episodes)
    expected = update_operations(updater.model, 4, 11, 5)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_attention_with_a_cache_multiplies_half_of_the_pairs():
    model = models.language_model("llama-4x256", quick=True)
    whole, half, none = (forward_operations(model, 2, 16, 0, pairs) for pairs in (1.0, 0.5, 0.0))
    assert whole - none == pytest.approx(2 * (half - none))
    assert whole - none == 4 * 2 * 64 * 2 * 16**2  # 4 · layers · width · batch · length²


def test_the_update_that_is_timed_is_that_of_ppo(monkeypatch, tiny, language_model, tmp_path):
    import gymnasium as gym

    rollouts = []

    def collect(*arguments, **keywords):
        rollouts.append(collect_episodes(*arguments, **keywords))
        return rollouts[-1]

    collect_episodes = ppo.collect_episodes
    monkeypatch.setattr(ppo, "collect_episodes", collect)
    envs = gym.make_vec("ABC-RLHF-v0", num_envs=4, autoreset_mode="Disabled", **tiny)
    settings = {"num_epochs": 1, "minibatch_size": 4, "learning_rate": 1e-3, "kl_coef": 0.0}
    agent = ppo.PPO(
        language_model,
        envs,
        episodes_per_iteration=4,
        kl_target=None,
        log_dir=tmp_path,
        **settings,
    )
    # The value head is random: both start with the same one.
    updater = Updater(language_model, config=PPOConfig(episodes_per_iteration=4, **settings))
    updater.policy.rules = agent.policy.rules
    updater.policy.load_state_dict(agent.policy.state_dict())
    agent.learn(1)

    (rollout,) = rollouts
    mask = rollout.completion_mask
    with torch.no_grad():
        old = updater.policy.evaluate(*rollout.texts)
    config = agent.config
    advantages, returns = ppo.gae(rollout.credit, old.values, mask, config.gamma, config.gae_lambda)
    shift, scale = ppo.whitening(advantages[mask])
    advantages = ((advantages - shift) * scale).masked_fill(~mask, 0.0)
    updater.update(
        type(random_episodes(1, 2, 1))(
            *rollout.texts, old.logprobs, old.values, advantages, returns
        )
    )
    trained, expected = updater.policy.state_dict(), agent.policy.state_dict()
    moved = 0.0
    for name, weights in language_model.state_dict().items():
        torch.testing.assert_close(trained[f"model.{name}"], expected[f"model.{name}"])
        moved = max(moved, (weights - expected[f"model.{name}"]).abs().max().item())
    assert moved > 1e-4


def test_the_race_ends_where_the_running_mean_reaches_the_goal():
    rows = [{"score": float(score), "seconds": 2.0} for score in [0] * 10 + [5] * 10]
    assert reached(rows, 2.5) == (15, 30.0)
    assert reached(rows, 5.0) == (20, 40.0)
    assert reached(rows, 5.1) is None


@pytest.mark.parametrize("part", [environment, lean, peers, stages])
def test_the_parts_measure_ratios(part):
    rows = part.measure(quick=True)
    assert {row["part"] for row in rows} == {part.__name__.split(".")[-1]}
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)


def test_each_stage_costs_time():
    ratios = [row["ratio"] for row in stages.measure(quick=True)]
    # Scores, a policy, an update: each leaves fewer tokens per second. The last is a share.
    assert all(0 < ratio < 1 for ratio in ratios)


def test_goals_are_met_or_not():
    row = {"part": "race", "case": "c", "quantity": "q", "low": 1.0, "ratio": 2.0, "high": 3.0}
    lines = make_goals([row | {"goal": goal} for goal in (">= 2", ">= 2.1", "<= 2.1", None)])
    assert [line.split(" | ")[-1].strip(" |") for line in lines.splitlines()[2:]] == [
        "yes",
        "**no**",
        "yes",
    ]


def test_sb3_with_every_text_read_anew_writes_the_same_texts():
    """So both sides of the ratio do the same work."""
    budget = {"min_new_tokens": 2, "max_new_tokens": 4}
    anew, ours = (sb3._agent(policy, 2, budget) for policy in (sb3._Anew, sb3.LanguageModelPolicy))
    for agent in (anew, ours):
        agent.set_random_seed(0)
        sb3._iteration(agent)()
    buffers = anew.rollout_buffer, ours.rollout_buffer
    assert (buffers[0].actions == buffers[1].actions).all()
    np.testing.assert_allclose(buffers[0].log_probs, buffers[1].log_probs, atol=1e-3)
    for name, weight in anew.policy.state_dict().items():  # eight steps of at most 1e-4
        torch.testing.assert_close(ours.policy.state_dict()[name], weight, atol=1.6e-3, rtol=0)
