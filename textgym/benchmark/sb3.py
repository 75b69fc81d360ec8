"""Stable-Baselines3 with a language model as the policy, in the form that suites train."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from .plan import EPISODES, Task

__all__ = ["SB3Agent"]


class SB3Agent:
    """Trains an on-policy algorithm of SB3, and shows what suites read of an agent.

    An iteration is a rollout of as many tokens as :data:`textgym.benchmark.plan.EPISODES`
    completions have on average. It may cut episodes at either end. Minibatches are whole texts, as
    those of the bundled agents are. The KL is SB3's estimate from the sampled tokens. The seed is
    its own: prompts and tokens are not those of the other agents.

    Args:
        algorithm: "PPO", "A2C", or "MaskablePPO" (of sb3-contrib).
        task: What is learned.
        envs: The environment, with credit.
        settings: ``seed``, ``dtype``, ``kl_coef``, ``num_minibatches`` per epoch, and arguments of
            the algorithm; ``device`` is "cpu" by default. ``log_dir`` is not used.
    """

    def __init__(
        self, algorithm: str, task: Task, envs: VectorEnv, settings: dict[str, Any]
    ) -> None:
        from textgym.agents.environment import action_rules  # Imported here: slow.
        from textgym.agents.sb3 import HindsightCreditCallback, KLPenaltyCallback, TextVecEnv
        from textgym.wrappers.vector import ActionMask, IllegalToken

        learner, policy, buffer = _algorithm(algorithm)
        masks = algorithm == "MaskablePPO"
        own = ("dtype", "log_dir", "kl_coef", "num_minibatches")
        arguments = {"device": "cpu"}
        arguments |= {name: value for name, value in settings.items() if name not in own}
        base: Any = envs.unwrapped
        num_tokens = EPISODES * (base.min_new_tokens + base.max_new_tokens) // 2
        if "num_minibatches" in settings:  # A2C has one.
            arguments["batch_size"] = num_tokens // settings["num_minibatches"]
        self.agent = learner(
            policy,
            TextVecEnv(ActionMask(envs) if masks else IllegalToken(envs)),
            policy_kwargs={"model": task.policy, "dtype": settings["dtype"]},
            rollout_buffer_class=buffer,
            n_steps=num_tokens // envs.num_envs,
            gamma=1.0,
            **arguments,
        )
        network: Any = self.agent.policy.network
        network.rules = action_rules(envs)  # SB3 asks the environment; suites ask the policy.
        self.policy = network
        reference: Any = self.agent.policy.reference()  # type: ignore[operator]
        reference.network.rules = network.rules
        self.ref_policy = reference.network
        self._callbacks = [HindsightCreditCallback(), KLPenaltyCallback(settings["kl_coef"])]
        self.history: list[dict[str, float]] = []

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[dict[str, float]], bool | None] | None = None,
    ) -> None:
        """Train until the callback says stop; see :meth:`textgym.agents.Agent.learn`."""
        from stable_baselines3.common.callbacks import CallbackList

        recorder = _make_recorder(self.history, callback, self.policy.rules.num_actions)
        self.agent.learn(total_timesteps, callback=CallbackList([*self._callbacks, recorder]))


def _algorithm(name: str) -> tuple[Any, Any, Any]:
    """The class of an algorithm, and those of its policy and its buffer."""
    if name == "MaskablePPO":
        from sb3_contrib import MaskablePPO

        from textgym.agents.sb3.maskable import (
            MaskableLanguageModelPolicy,
            MaskableWholeTextDictRolloutBuffer,
        )

        return MaskablePPO, MaskableLanguageModelPolicy, MaskableWholeTextDictRolloutBuffer
    import stable_baselines3

    from textgym.agents.sb3 import LanguageModelPolicy, WholeTextDictRolloutBuffer

    return getattr(stable_baselines3, name), LanguageModelPolicy, WholeTextDictRolloutBuffer


def _make_recorder(history: list[dict[str, float]], callback: Any, num_actions: int) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    from textgym.agents.alarm import sound_alarm

    class Recorder(BaseCallback):
        """Notes a row per rollout, after the update that follows it."""

        def __init__(self) -> None:
            super().__init__()
            self._row: dict[str, float] | None = None
            self._goes_on = True
            self._started = time.perf_counter()

        def _on_rollout_start(self) -> None:
            self._finish()
            self._scores: list[float] = []
            self._lengths: list[int] = []

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "score" in info:
                    self._scores.append(info["score"])
                    self._lengths.append(info["completion_tokens"])
            return self._goes_on

        def _on_rollout_end(self) -> None:
            logged = self.logger.name_to_value
            self._row = {
                "time/iteration": len(history) + 1,
                "time/total_timesteps": self.num_timesteps,
                "rollout/score_mean": float(np.mean(self._scores)),
                "rollout/kl_exact": float(logged.get("rollout/kl", np.nan)),
                "rollout/episode_length": float(np.mean(self._lengths)),
            }

        def _on_training_end(self) -> None:
            if self._goes_on:
                self._finish()

        def _finish(self) -> None:
            if self._row is None:
                return
            # SB3 logs the negative entropy of the update as a loss.
            entropy = -float(self.logger.name_to_value.get("train/entropy_loss", np.nan))
            seconds = time.perf_counter() - self._started
            row = {**self._row, "train/entropy": entropy, "time/seconds": seconds}
            row["train/alarm"] = float(sound_alarm([*history, row], num_actions))
            history.append(row)
            self._row = None
            before = time.perf_counter()
            if callback is not None and callback(row) is False:
                self._goes_on = False
            self._started += time.perf_counter() - before  # What is measured is no training.

    return Recorder()
