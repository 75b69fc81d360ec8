"""Does it learn? A planted task, solved in seconds: the score is the share of one token."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import VectorWrapper

from textgym.agents import GRPO, PPO, RLOO

# The best policy writes one token alone, so it leaves the reference policy far behind.
pytestmark = pytest.mark.filterwarnings("ignore:iteration:RuntimeWarning")


class ShuffledRewards(VectorWrapper):
    """Pays each row another row's reward; what the infos tell as the score stays the true one.

    All episodes have the same length, so that all rows are paid in the same step.
    """

    def __init__(self, env) -> None:
        super().__init__(env)
        self._rng = np.random.default_rng(0)

    def step(self, actions):
        observations, rewards, *rest = self.env.step(actions)
        return observations, self._rng.permutation(rewards), *rest


# Without a critic an iteration is one gradient step, and not sixteen: it may be larger.
@pytest.fixture(params=[(PPO, 3e-3), (RLOO, 1e-2), (GRPO, 1e-2)], ids=["ppo", "rloo", "grpo"])
def mean_scores(request, make_model, make_vector_env, tmp_path):
    """Mean score of the first and of the last five iterations."""
    agent_class, learning_rate = request.param

    def run(wrapper=lambda env: env) -> tuple[float, float]:
        env = wrapper(make_vector_env(16, min_new_tokens=6, max_new_tokens=6))
        agent = agent_class(
            make_model(), env, learning_rate=learning_rate, kl_coef=0.01, log_dir=tmp_path
        )
        agent.learn(30 * 16 * 6)
        scores = [row["rollout/score_mean"] for row in agent.history]
        return float(np.mean(scores[:5])), float(np.mean(scores[-5:]))

    return run


def test_the_score_rises(mean_scores) -> None:
    first, last = mean_scores()
    assert last > first + 0.35


def test_the_score_does_not_rise_when_rewards_are_shuffled(mean_scores) -> None:
    first, last = mean_scores(ShuffledRewards)
    assert last < first + 0.15
