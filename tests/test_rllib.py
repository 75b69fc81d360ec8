"""RLlib trains on the environment as it comes; run by ``make rllib-test``, skipped without ray."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray.rllib", reason="ray is not installed; make rllib-test runs this")

EXAMPLE = Path(__file__).parents[1] / "examples" / "rllib_ppo.py"


def test_the_example_trains_on_whole_texts_and_reports_a_score(tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLE, "--iterations", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    # 64 rows of 64 steps: four texts of 16 tokens each, for a reset is no step.
    assert re.search(r"iteration +0 +256 texts +mean score [+-]\d", result.stdout)


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
def test_rllib_counts_no_reset_as_a_step_and_pays_the_score(mode):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    config = PPOConfig().environment(
        "textgym:ABC-RLHF-Features-v0", env_config={"max_new_tokens": 4}
    )
    config = config.env_runners(num_envs_per_env_runner=2, gym_env_vectorize_mode=mode)
    runner = SingleAgentEnvRunner(config=config.debugging(seed=0))
    episodes = runner.sample(num_episodes=4, random_actions=True)
    runner.stop()
    finished = [episode for episode in episodes if episode.is_terminated]
    assert len(finished) == 4
    for episode in finished:
        rewards = episode.get_rewards()
        assert len(rewards) == 4
        assert list(rewards[:-1]) == [0.0] * 3
        assert rewards[-1] == pytest.approx(episode.get_infos(-1)["score"], rel=1e-6)
