"""Stable-Baselines3's agents: small networks on features, and a language model on tokens."""

from __future__ import annotations

from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecNormalize

from reports.agents import ABC
from textgym.agents.sb3 import (
    HindsightCreditCallback,
    HindsightReplayBuffer,
    LanguageModelPolicy,
    TextVecEnv,
)
from textgym.wrappers.vector import ActionMask

from .episodes import FEATURES, NUM_TOKENS, TOKENS, Progress, make_envs
from .language_models import Run, kl_to_the_reference

__all__ = ["Recorder", "language_model", "on_features"]


class Recorder(BaseCallback):
    """Notes the scores that stand in the infos."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def _on_step(self) -> bool:
        scores = [info["score"] for info in self.locals["infos"] if "score" in info]
        self.progress.add(self.num_timesteps, scores)
        return True


def on_features(algorithm: type[BaseAlgorithm], **settings: Any) -> Run:
    """A small network on features of the language model.

    Under ABC a callback relabels the rollouts, or the replay buffer of DQN its episodes.
    """

    def run(reward: str, seed: int, timesteps: int) -> Progress:
        envs = make_envs(FEATURES, 64, reward)
        if algorithm is MaskablePPO:
            envs = ActionMask(envs)
        env = VecNormalize(TextVecEnv(envs), norm_reward=False, gamma=1.0)
        progress = Progress()
        callbacks: list[BaseCallback] = [Recorder(progress)]
        replay: dict[str, Any] = {}
        if reward == ABC and algorithm is DQN:
            replay["replay_buffer_class"] = HindsightReplayBuffer
        elif reward == ABC:
            callbacks.append(HindsightCreditCallback())
        make_agent: Any = algorithm  # The base class has other arguments.
        agent = make_agent(
            "MlpPolicy",
            env,
            gamma=1.0,
            seed=seed,
            policy_kwargs={"net_arch": [256, 256]},
            **settings,
            **replay,
        )
        agent.learn(timesteps, callback=CallbackList(callbacks))
        return progress

    return run


def language_model(reward: str, seed: int, timesteps: int) -> Progress:
    """PPO with the embedded language model as its policy, in float32."""
    progress = Progress()
    callbacks: list[BaseCallback] = [Recorder(progress)]
    if reward == ABC:
        callbacks.append(HindsightCreditCallback())
    agent = PPO(
        LanguageModelPolicy,
        TextVecEnv(make_envs(TOKENS, 16, reward)),
        policy_kwargs={"model": "embedded"},
        learning_rate=1e-4,
        n_steps=3 * NUM_TOKENS,
        batch_size=64,
        n_epochs=2,
        gamma=1.0,
        vf_coef=0.1,
        seed=seed,
    )
    agent.learn(timesteps, callback=CallbackList(callbacks))
    progress.kl = kl_to_the_reference(agent.policy.network, seed)  # type: ignore[arg-type]
    return progress
