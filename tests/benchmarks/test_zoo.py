"""The settings for rl-baselines3-zoo start a training, read as the zoo reads them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from reports import zoo as report
from reports.ends import mean_of_last
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from training.zoo import ENV_ID, settings_of

from textgym.benchmark.storage import read_rows
from textgym.registration import ENVIRONMENTS

ZOO = Path(__file__).parents[2] / "examples" / "zoo"
SEARCH = Path(__file__).parents[2] / "benchmarks" / "results" / "zoo" / "search" / "runs.csv"
ALGORITHMS = {"ppo": PPO, "a2c": A2C, "dqn": DQN}


def test_every_file_is_tested():
    assert {path.stem for path in ZOO.glob("*.yml")} == set(ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_settings_start_a_training(name):
    settings_by_id = yaml.safe_load((ZOO / f"{name}.yml").read_text(encoding="utf-8"))
    assert set(settings_by_id) <= set(ENVIRONMENTS)
    for env_id, settings in settings_by_id.items():
        assert settings.pop("n_timesteps") >= 10_000
        settings.pop("n_envs")
        policy = settings.pop("policy")
        smaller = {"n_steps": 4, "batch_size": 4, "learning_starts": 4, "buffer_size": 64}
        settings |= {key: value for key, value in smaller.items() if key in settings}
        vec_env = make_vec_env(env_id, n_envs=2, env_kwargs={"max_new_tokens": 4})
        agent = ALGORITHMS[name](policy, vec_env, seed=0, **settings).learn(16)
        assert agent.num_timesteps >= 16


def test_the_benchmark_reads_the_same_settings():
    num_envs, timesteps, policy, settings = settings_of(ZOO / "ppo.yml")
    raw = yaml.safe_load((ZOO / "ppo.yml").read_text(encoding="utf-8"))[ENV_ID]
    assert (num_envs, timesteps, policy) == (raw["n_envs"], raw["n_timesteps"], raw["policy"])
    assert {"n_envs": num_envs, "n_timesteps": timesteps, "policy": policy} | settings == raw


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_files_have_the_settings_that_won_the_search(name):
    trials = read_rows(SEARCH, report.SEARCH_KEYS)
    assert trials.loc[trials["algorithm"] == name, "trial"].nunique() == report.NUM_TRIALS
    *_, settings = settings_of(ZOO / f"{name}.yml")
    won = report.draw_settings(name, report.best_trial(trials, name))
    assert {key: settings[key] for key in won} == won


def test_the_first_trial_is_the_file_and_the_others_differ():
    assert report.draw_settings("ppo", 0) == {}
    drawn = [report.draw_settings("ppo", trial) for trial in range(1, report.NUM_TRIALS)]
    assert drawn == [report.draw_settings("ppo", trial) for trial in range(1, report.NUM_TRIALS)]
    assert len({tuple(settings.items()) for settings in drawn}) == len(drawn)


def test_what_is_left_over_at_the_end_of_a_run_counts_by_its_episodes():
    scores = [9.0] * 3 + [1.0] * 4 + [101.0]
    run = pd.DataFrame({"episodes": [64] * 7 + [1], "score": scores})
    assert mean_of_last(run, 256) == pytest.approx((255 * 1.0 + 101.0) / 256)
    assert mean_of_last(run[:-1], 256) == 1.0
