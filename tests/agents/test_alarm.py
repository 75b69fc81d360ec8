"""When a run has run away."""

from __future__ import annotations

import math
import warnings

import pytest

from textgym.agents import PPO
from textgym.agents.alarm import find_runaway, sound_alarm

VOCAB = 100  # log 100 = 4.6


def row(entropy: float = 2.0, kl_per_token: float = 0.5, length: float = 10.0) -> dict:
    return {
        "train/entropy": entropy,
        "rollout/kl_exact": kl_per_token * length,
        "rollout/episode_length": length,
    }


@pytest.mark.parametrize(
    ("now", "word"),
    [
        ({"kl_per_token": 2.1}, "KL"),
        ({"entropy": 0.19}, "fallen"),
        ({"entropy": 0.5 * (2 + math.log(VOCAB)) + 0.01}, "risen"),
    ],
)
def test_each_rule(now: dict, word: str) -> None:
    history = [row(), row(), *[row(**now)] * 3]
    assert word in find_runaway(history, VOCAB)


@pytest.mark.parametrize("now", [{"kl_per_token": 1.9}, {"entropy": 0.21}, {"entropy": 3.2}])
def test_what_is_within_the_limits_is_quiet(now: dict) -> None:
    assert find_runaway([row(), *[row(**now)] * 3], VOCAB) is None


def test_a_single_iteration_does_not_count() -> None:
    assert find_runaway([row(), row(), row(), row(kl_per_token=4.0)], VOCAB) is None


def test_there_is_one_warning_per_run() -> None:
    history = [row(), *[row(kl_per_token=3.0)] * 3]
    with pytest.warns(RuntimeWarning, match="iteration 4: the KL"):
        assert sound_alarm(history, VOCAB)
    history[-1]["train/alarm"] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sound_alarm([*history, row(kl_per_token=3.0)], VOCAB)


def test_an_agent_that_runs_away_warns_once_and_logs_it(
    make_model, make_vector_env, tmp_path
) -> None:
    agent = PPO(make_model(), make_vector_env(4), learning_rate=0.1, kl_coef=0.0, log_dir=tmp_path)
    with pytest.warns(RuntimeWarning, match=r"iteration \d+: the") as caught:
        agent.learn(10**9, callback=lambda row: row["time/iteration"] < 6)
    assert len([one for one in caught if "iteration" in str(one.message)]) == 1
    assert agent.history[0]["train/alarm"] == 0
    assert agent.history[-1]["train/alarm"] == 1
