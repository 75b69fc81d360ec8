"""Pays potential-based shaping at every step, so that any agent learns from a dense reward."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from textgym.credit.base import check_gamma
from textgym.envs import TextGenerationEnv
from textgym.errors import InvalidArgumentError
from textgym.potentials import Potential, StateFunction, get_potential
from textgym.wrappers._text_env import find_text_env

__all__ = ["AttentionShaping", "check_shaping"]


def check_shaping(
    beta: float, potential: str | Potential | StateFunction | None, gamma: float
) -> tuple[float, Potential, float]:
    """Check the arguments that the two forms of the wrapper share.

    Raises:
        InvalidArgumentError: If one of them cannot be used.
    """
    potential = get_potential(potential)
    if not abs(beta) < float("inf"):
        raise InvalidArgumentError("beta", beta, "must be a finite number")
    return float(beta), potential, check_gamma(gamma)


class AttentionShaping(
    gym.Wrapper[dict[str, np.ndarray], np.int64, dict[str, np.ndarray], np.int64],
    RecordConstructorArgs,
):
    """Adds β(γΦ(s') - Φ(s)) to every reward, with a potential from the reward model.

    Φ is a function of the text so far and 0 at the end of an episode, so the optimal policies are
    those of the sparse reward for every γ (Ng, Harada & Russell, 1999; Grześ, 2017); since Φ is 0
    at the start too, the rewards of an episode still sum to its score at γ = 1. The default Φ is
    the attention-weighted mean of the reward model's prefix scores, the causal form of
    Attention-Based Credit. Where a limit from outside truncates an episode, Φ(s') is paid as it
    is: the return is not complete there.

    Cost: one forward pass of the reward model over the text so far, per step.

    ``info`` holds the terms ``unshaped_reward`` and ``shaping`` at every step, and at the end of
    an episode ``unshaped_return`` and ``shaped_return``, undiscounted sums.

    The vector form is :class:`textgym.wrappers.vector.AttentionShaping`;
    :class:`textgym.credit.ShapingCredit` gives the same numbers for a finished completion from
    one forward pass.

    Args:
        env: A text environment, with any wrappers.
        beta: Factor on the potential.
        potential: See :func:`textgym.potentials.get_potential`; None for the attention-weighted
            prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        env: gym.Env,
        beta: float = 1.0,
        potential: str | Potential | StateFunction | None = None,
        gamma: float = 1.0,
    ) -> None:
        RecordConstructorArgs.__init__(self, beta=beta, potential=potential, gamma=gamma)
        self.beta, self.potential, self.gamma = check_shaping(beta, potential, gamma)
        self._text_env: TextGenerationEnv = find_text_env(
            env, TextGenerationEnv, self.potential.needs_causal_reward_model
        )
        super().__init__(env)
        self._phi = self._unshaped_return = self._shaped_return = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; the potential is 0 there."""
        self._phi = self._unshaped_return = self._shaped_return = 0.0
        return super().reset(seed=seed, options=options)

    def step(
        self, action: np.int64
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Step, and add the shaping to the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        phi = 0.0 if terminated else self.beta * self._potential_now()
        shaping = self.gamma * phi - self._phi
        self._phi = phi
        unshaped = float(reward)  # type: ignore[arg-type]
        shaped = unshaped + shaping
        self._unshaped_return += unshaped
        self._shaped_return += shaped
        info |= {"unshaped_reward": unshaped, "shaping": shaping}
        if terminated or truncated:
            info |= {
                "unshaped_return": self._unshaped_return,
                "shaped_return": self._shaped_return,
            }
        return observation, shaped, terminated, truncated, info

    def _potential_now(self) -> float:
        scored = self._text_env.reward_model.read(
            self._text_env.completions, self.potential.readouts
        )
        return float(self.potential(scored)[0, -1])  # a batch of one has no padding
