"""An iteration of SB3's PPO with a language model, against one that reads every text anew.

To SB3 every token is a sample, whose observation is the text so far. The policy of textgym reads
the tokens that are new since the last step in a rollout, and in an update the texts that begin no
other. The comparison is with the same policy that reads each observation for itself. Both train
the embedded model in float32, 16 rows at a time, with two epochs of four minibatches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from torch import Tensor

from harness.timing import side_by_side
from speed.ratios import Row, result
from textgym.agents.sb3 import LanguageModelPolicy, TextVecEnv, WholeTextDictRolloutBuffer
from textgym.agents.sb3.texts import left_padded
from textgym.wrappers.vector import IllegalToken

__all__ = ["measure"]


class _Anew(LanguageModelPolicy):
    """Reads each observation for itself."""

    def _read_on(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self._read_at_once(ids, mask)

    def _read_at_once(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits, values = self.network(*left_padded(ids, mask), num_logits=1)
        return logits[:, 0], values[:, 0]


def measure(quick: bool) -> list[Row]:
    """Seconds of an iteration: with every text read anew, over ours.

    Args:
        quick: Few rows and tokens; for tests.
    """
    lengths = {(2, 4): 1} if quick else {(8, 16): 7, (40, 60): 3}
    num_envs = 2 if quick else 16
    rows = []
    for (shortest, longest), rounds in lengths.items():
        budget = {"min_new_tokens": shortest, "max_new_tokens": longest}
        agents = {
            "every text anew": _agent(_Anew, num_envs, budget),
            "ours": _agent(LanguageModelPolicy, num_envs, budget),
            "ours, whole texts": _agent(
                LanguageModelPolicy,
                num_envs,
                budget,
                rollout_buffer_class=WholeTextDictRolloutBuffer,
            ),
        }
        _check(agents["every text anew"], agents["ours"])
        timed = side_by_side(
            {name: _iteration(agent) for name, agent in agents.items()}, rounds, min_seconds=0.0
        )
        for name, minibatches in (
            ("ours", "of tokens, as in SB3"),
            ("ours, whole texts", "of whole texts"),
        ):
            case = f"completions of {shortest} to {longest} tokens, minibatches {minibatches}"
            quantity = "seconds of an iteration of SB3's PPO: every text read anew / ours"
            ratio = timed.ratio("every text anew", name)
            rows.append(result("sb3", case, quantity, ratio, seconds=timed.seconds))
    return rows


def _agent(
    policy: type[LanguageModelPolicy], num_envs: int, budget: dict[str, int], **keywords: Any
) -> PPO:
    envs = gym.make_vec("ABC-RLHF-v0", num_envs, autoreset_mode=AutoresetMode.DISABLED, **budget)
    num_steps = budget["max_new_tokens"]
    return PPO(
        policy, TextVecEnv(IllegalToken(envs)), learning_rate=1e-4, n_steps=num_steps,
        batch_size=num_steps * num_envs // 4, n_epochs=2, gamma=1.0, seed=0, device="cpu",
        policy_kwargs={"model": "embedded"}, **keywords,
    )  # fmt: skip


def _iteration(agent: PPO) -> Callable[[], object]:
    num_timesteps = agent.n_steps * agent.n_envs
    return lambda: agent.learn(num_timesteps, reset_num_timesteps=False)


def _check(anew: PPO, ours: PPO) -> None:
    """Make sure that both say the same of the states of a rollout."""
    ours.learn(ours.n_steps * ours.n_envs)
    anew.policy.load_state_dict(ours.policy.state_dict())
    (samples,) = ours.rollout_buffer.get()
    actions = samples.actions.long().flatten()
    with torch.no_grad():
        for one, other in zip(
            anew.policy.evaluate_actions(samples.observations, actions),
            ours.policy.evaluate_actions(samples.observations, actions),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
