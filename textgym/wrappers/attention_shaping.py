"""Potential-based shaping with the attention-weighted prefix score: causal ABC."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.credit.potentials import Potential, StateFunction, get_potential
from textgym.credit.start import Start
from textgym.wrappers.potential_shaping import PotentialShaping, VectorPotentialShaping

__all__ = ["AttentionShaping", "VectorAttentionShaping"]


class AttentionShaping(PotentialShaping):
    """Adds β(γΦ(s') - Φ(s)) to every reward, with Φ from the reward model's attention.

    Φ is the attention-weighted mean of the reward model's prefix scores, the causal form of
    Attention-Based Credit; see :class:`textgym.credit.AttentionWeightedPrefixScore`. The optimal
    policies stay the same. See :class:`textgym.wrappers.PotentialShaping` for what the rewards sum
    to, for the info and for the cost.

    The vector form is :class:`textgym.wrappers.vector.AttentionShaping`.

    Args:
        env: A text environment, with any wrappers except another that shapes.
        beta: Factor on the potential.
        potential: Another potential; see :func:`textgym.credit.get_potential`. None for the
            attention-weighted prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.
        start: "zero" measures Φ from its value at the prompt alone; "prompt" takes it as it is. See
            :class:`textgym.wrappers.PotentialShaping`.

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import AttentionShaping
        >>> env = AttentionShaping(gym.make("ABC-RLHF-v0"))
        >>> observation, info = env.reset(seed=0)
        >>> rewards, terminated = [], False
        >>> while not terminated:
        ...     _, reward, terminated, _, info = env.step(env.action_space.sample())
        ...     rewards.append(reward)
        >>> 0.0 in rewards, bool(abs(sum(rewards) - info["score"]) < 1e-4)
        (False, True)
    """

    def __init__(
        self,
        env: gym.Env,
        beta: float = 1.0,
        potential: str | Potential | StateFunction | None = None,
        gamma: float = 1.0,
        *,
        start: Start = "zero",
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            beta=beta,
            potential=potential,
            gamma=gamma,
            start=start,
        )
        super().__init__(env, get_potential(potential), beta=beta, gamma=gamma, start=start)


class VectorAttentionShaping(VectorPotentialShaping):
    """The vector form of :class:`textgym.wrappers.AttentionShaping`.

    :class:`textgym.wrappers.vector.PotentialShaping` describes the infos.

    Args:
        env: A batched text environment, with any wrappers except another that shapes.
        beta: Factor on the potential.
        potential: Another potential; see :func:`textgym.credit.get_potential`. None for the
            attention-weighted prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.
        start: "zero" measures Φ from its value at the prompt alone; "prompt" takes it as it is. See
            :class:`textgym.wrappers.PotentialShaping`.

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

    def __init__(
        self,
        env: VectorEnv,
        beta: float = 1.0,
        potential: str | Potential | StateFunction | None = None,
        gamma: float = 1.0,
        *,
        start: Start = "zero",
    ) -> None:
        super().__init__(env, get_potential(potential), beta=beta, gamma=gamma, start=start)
