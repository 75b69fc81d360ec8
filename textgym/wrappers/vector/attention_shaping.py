"""The vector form of the wrapper that pays potential-based shaping."""

from __future__ import annotations

import numpy as np
from gymnasium.vector import VectorEnv

from textgym.potentials import Potential, StateFunction
from textgym.wrappers._state_potential import StatePotential
from textgym.wrappers._text_env import refuse_inside
from textgym.wrappers.attention_shaping import check_shaping
from textgym.wrappers.vector._base import RewardTerm

__all__ = ["AttentionShaping"]


class AttentionShaping(RewardTerm):
    """The vector form of :class:`textgym.wrappers.AttentionShaping`, which tells what it costs.

    All rows are read together. ``infos`` holds ``unshaped_reward`` and ``shaping`` for every row
    that acted, and ``unshaped_return`` and ``shaped_return`` for those whose episode ended (under
    ``AutoresetMode.SAME_STEP``, in ``infos["final_info"]``, with the terms of the last step).

    Args:
        env: A batched text environment, with any wrappers but another of this class.
        beta: Factor on the potential.
        potential: See :func:`textgym.potentials.get_potential`; None for the attention-weighted
            prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import AttentionShaping
        >>> envs = AttentionShaping(gym.make_vec("ABC-RLHF-v0", num_envs=4), gamma=0.99)
        >>> observations, infos = envs.reset(seed=0)
        >>> _, rewards, _, _, infos = envs.step(envs.action_space.sample())
        >>> bool((infos["unshaped_reward"] + infos["shaping"] == rewards).all())
        True
    """

    term = "shaping"

    def __init__(
        self,
        env: VectorEnv,
        beta: float = 1.0,
        potential: str | Potential | StateFunction | None = None,
        gamma: float = 1.0,
    ) -> None:
        self.beta, self.potential, self.gamma = check_shaping(beta, potential, gamma)
        super().__init__(env, self.potential.needs_causal_reward_model)
        refuse_inside(env, AttentionShaping, "add the two potentials up in one of your own")
        self._potential_of = StatePotential(self._text_env.reward_model, self.potential)
        self._phi = np.zeros(self.num_envs)

    def _term(self, acted: np.ndarray, finished: np.ndarray) -> np.ndarray:
        # A row that restarted is in a start state, where the potential is 0.
        phi = self.beta * self._potential_of(self._text_env.completions, acted & ~finished)
        shaping = self.gamma * phi - self._phi
        self._phi = phi
        return shaping

    def _clear(self, rows: np.ndarray) -> None:
        super()._clear(rows)
        self._phi[rows] = 0.0
