"""What learning.py, precision.py and agents.py train."""

from __future__ import annotations

import numpy as np
import pytest
from reports import agents as report
from reports import learning, precision
from training import agents, episodes, ppo


def test_every_condition_has_a_place_in_the_table():
    assert list(ppo.CONDITIONS) == list(learning.COLORS)
    assert set(precision.CONDITIONS) <= set(ppo.CONDITIONS)


def test_every_agent_has_a_place_in_the_table():
    assert list(agents.AGENTS) == list(report.AGENTS)
    assert {reward for entry in agents.AGENTS.values() for reward in entry.rewards} == set(
        report.REWARDS
    )


def test_sparse_reward_and_uniform_credit_are_among_the_conditions():
    assert ppo.CONDITIONS["sparse"] == ("sparse", {})
    assert ppo.CONDITIONS["uniform credit"] == ("uniform", {})


def test_scores_are_averaged_in_chunks_of_64_episodes():
    progress = episodes.Progress()
    for timestep in range(1, 11):
        progress.add(timestep * 160, [float(timestep)] * 16)
    progress.kl = 3.0
    rows = progress.rows()
    assert rows["episodes"].tolist() == [64, 64, 32]
    assert rows["timesteps"].tolist() == [640, 1280, 1600]
    assert rows["score"].tolist() == [2.5, 6.5, 9.5]
    assert rows["kl"].tolist()[2] == 3.0
    assert rows["kl"].isna().tolist() == [True, True, False]


def test_a_run_of_ppo_has_a_row_per_iteration():
    rows = ppo.train("planted", 2, "ABC", 0)
    assert rows["iteration"].tolist() == [1, 2]
    assert rows["timesteps"].tolist() == [512, 1024]  # 64 episodes of 8 tokens
    again = ppo.train("planted", 2, "ABC", 0)
    columns = ["timesteps", "score", "kl", "episode_length"]
    np.testing.assert_array_equal(rows[columns], again[columns])


@pytest.mark.parametrize(
    ("agent", "reward"),
    [
        ("random, 16 likeliest", report.SPARSE),
        ("RLOO", report.ABC),
        ("PPO", report.SHAPING),
        ("SB3 A2C, MLP", report.ABC),
        ("MaskablePPO, MLP", report.SHAPING),
    ],
)
def test_an_agent_runs(agent, reward):
    rows = agents.train(0.001, agent, reward, 0)
    assert np.isfinite(rows["score"]).all()
    assert rows["episodes"].sum() >= 16
    assert np.isfinite(rows["kl"].iloc[-1]) == (agent in ("RLOO", "PPO"))


def test_hyperparameters_are_described():
    description = ppo.describe_runs("planted")
    assert description["hyperparameters"]["learning_rate"] == 1e-3
    assert description["hyperparameters"]["episodes_per_iteration"] == 64
    assert description["conditions"]["sparse, λ = 1"] == {"credit": "sparse", "gae_lambda": 1.0}
