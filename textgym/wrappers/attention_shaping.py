"""Pays potential-based shaping at every step, so that any agent learns from a dense reward."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.credit.base import check_gamma
from textgym.credit.potentials import Potential, StateFunction, get_potential
from textgym.envs import TextGenerationEnv
from textgym.errors import InvalidArgumentError
from textgym.wrappers._reward_term import RewardTerm, VectorRewardTerm
from textgym.wrappers._state_potential import StatePotential
from textgym.wrappers._text_env import find_text_env, refuse_inside

__all__ = ["AttentionShaping", "VectorAttentionShaping", "check_shaping"]


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


class AttentionShaping(RewardTerm):
    """Adds β(γΦ(s') - Φ(s)) to every reward, with a potential from the reward model.

    Φ is a function of the text so far and 0 at the end of an episode, so the optimal policies are
    those of the sparse reward for every γ (Ng, Harada & Russell, 1999; Grześ, 2017); since Φ is 0
    at the start too, the rewards of an episode still sum to its score at γ = 1. The default Φ is
    the attention-weighted mean of the reward model's prefix scores, the causal form of
    Attention-Based Credit. Where a limit from outside truncates an episode, Φ(s') is paid as it
    is: the return is not complete there.

    Cost: one token of the reward model per step, about one more forward pass per episode. This
    holds for potentials whose read-outs are ``PrefixScores`` and ``AttentionMap``, as those of the
    shipped ones are, and a reward model that is a decoder with keys and values in every layer: the
    text so far is kept in a cache. Any other potential, an encoder, and a reward model with a
    ``read`` of its own take a forward pass over the whole text so far at every step. A function as
    the potential takes none.

    Spaces are those of the wrapped environment.

    | key in ``info``   | when | type  | meaning                                          |
    |-------------------|------|-------|--------------------------------------------------|
    | `unshaped_reward` | step | float | what the environment paid                        |
    | `shaping`         | step | float | the term that is added                           |
    | `unshaped_return` | end  | float | sum of `unshaped_reward`, undiscounted           |
    | `shaped_return`   | end  | float | sum of the rewards, undiscounted                 |

    The vector form is :class:`textgym.wrappers.vector.AttentionShaping`;
    :class:`textgym.credit.ShapingCredit` gives the same numbers for a finished completion from
    one forward pass.

    Args:
        env: A text environment, with any wrappers but another of this class.
        beta: Factor on the potential.
        potential: See :func:`textgym.credit.get_potential`; None for the attention-weighted
            prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.

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

    term = "shaping"

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
        refuse_inside(env, AttentionShaping, "add the two potentials up in one of your own")
        super().__init__(env)
        self._potential_of = StatePotential(self._text_env.reward_model, self.potential)
        self._phi = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the potential is 0 there."""
        self._phi = 0.0
        return super().reset(seed=seed, options=options)

    def _term(self, terminated: bool) -> float:
        goes_on = np.array([not terminated])
        phi = self.beta * float(self._potential_of(self._text_env.completions, goes_on)[0])
        shaping = self.gamma * phi - self._phi
        self._phi = phi
        return shaping


class VectorAttentionShaping(VectorRewardTerm):
    """The vector form of :class:`textgym.wrappers.AttentionShaping`, which tells what it costs.

    All rows are read together. ``infos`` holds ``unshaped_reward`` and ``shaping`` for every row
    that acted, and ``unshaped_return`` and ``shaped_return`` for those whose episode ended (under
    ``AutoresetMode.SAME_STEP``, in ``infos["final_info"]``, with the terms of the last step).

    Args:
        env: A batched text environment, with any wrappers but another of this class.
        beta: Factor on the potential.
        potential: See :func:`textgym.credit.get_potential`; None for the attention-weighted
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
        refuse_inside(env, VectorAttentionShaping, "add the two potentials up in one of your own")
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
