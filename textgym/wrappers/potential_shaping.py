"""Pays potential-based shaping at every step, so that any agent learns from a dense reward."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.credit.checks import check_factor, check_gamma
from textgym.credit.potentials import Potential, StateFunction, get_potential
from textgym.credit.start import Start, check_start
from textgym.envs import TextEnvironment
from textgym.errors import InvalidArgumentError
from textgym.models import ScoredCompletions
from textgym.models.bridge import IncrementalTextReader
from textgym.models.checks import check_supports
from textgym.models.incremental import IncrementalRewardModel
from textgym.wrappers._reward_term import RewardTerm, TermReader, VectorRewardTerm
from textgym.wrappers._text_env import refuse_inside

__all__ = ["PotentialShaping", "ShapingReader", "VectorPotentialShaping"]


class ShapingReader(TermReader):
    """The terms β(γΦ(s') - Φ(s)) of a text environment, step by step.

    Args:
        env: The environment to wrap, single or batched.
        potential: The potential Φ.
        beta: Factor on the potential.
        gamma: Discount factor.
        start: "zero" measures Φ from its value at the prompt alone; "prompt" takes it as it is.

    Raises:
        InvalidArgumentError: If the environment is shaped already, a number is out of its range, or
            the reward model cannot give what the potential needs.
    """

    def __init__(
        self, env: Any, potential: Potential, beta: float, gamma: float, start: Start
    ) -> None:
        refuse_inside(
            env,
            (PotentialShaping, VectorPotentialShaping),
            "write one potential that is the sum of the two",
        )
        self.beta, self.gamma = check_factor(beta), check_gamma(gamma)
        self.start = check_start(start)
        self._potential = potential
        self._env: TextEnvironment = env.unwrapped
        self._phi = np.zeros(len(self._env.ended))
        self._reader: IncrementalRewardModel | IncrementalTextReader | None = None
        reward_model: Any = self._env.reward_model
        readouts = potential.readouts
        check_supports(reward_model, readouts)
        if not potential.reads_reward_model:
            return
        if IncrementalTextReader.can_read(reward_model, readouts):
            self._reader = IncrementalTextReader(reward_model)
        elif IncrementalRewardModel.can_read(reward_model, readouts):
            # With what is not a plain decoder, every step reads the whole text.
            with contextlib.suppress(InvalidArgumentError):
                self._reader = IncrementalRewardModel(reward_model, readouts)

    @property
    def is_incremental(self) -> bool:
        """Whether a step costs little more than a token instead of the whole text."""
        return self._reader is not None and self._reader.is_incremental

    def terms(self, going_on: np.ndarray) -> np.ndarray:
        """The terms of the step just taken; Φ(s') is 0 where the episode does not go on."""
        phi = self._values(going_on | self._at_start())  # some rows may have restarted already
        terms = self.gamma * np.where(going_on, phi, 0.0) - self._phi
        self._phi = phi
        return terms

    def begin(self, rows: np.ndarray) -> None:
        """Set Φ to its start value in rows that were just reset, bool, shape (num_envs,)."""
        self._phi[rows] = self._values(rows & self._at_start())[rows]

    def _at_start(self) -> np.ndarray:
        """Rows in a start state where Φ is not 0 by definition, bool, shape (num_envs,)."""
        if self.start == "zero":
            return np.zeros(len(self._phi), dtype=np.bool_)
        return ~self._env.completions.completion_mask.any(dim=1).cpu().numpy()

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """β·Φ of the current states of some rows, 0 elsewhere, float64, shape (num_envs,)."""
        values = np.zeros(len(rows))
        if rows.any():
            scored = self._read(torch.from_numpy(rows))
            newest = self._potential.newest(scored)
            if self.start == "zero":
                newest = newest - self._potential.start_values(scored)
            if not bool(newest.isfinite().all()):
                raise InvalidArgumentError(
                    "potential",
                    newest.tolist(),
                    f"{self._potential!r} gave these values for the current texts; they must be "
                    "finite",
                )
            values[rows] = self.beta * newest.cpu().numpy().astype(np.float64)
        return values

    def _read(self, rows: torch.Tensor) -> ScoredCompletions:
        completions = self._env.completions
        if self._reader is not None:
            return self._reader.read(completions, rows)
        chosen = completions.select(rows)
        if self._potential.reads_reward_model:
            return self._env.reward_model.read(chosen, self._potential.readouts)
        return ScoredCompletions(
            chosen.input_ids,
            chosen.attention_mask,
            chosen.completion_mask,
            score=torch.full((len(chosen),), torch.nan),  # No potential of this kind looks at it.
        )


class PotentialShaping(RewardTerm):
    """Adds β(γΦ(s') - Φ(s)) to every reward, for a potential Φ of your choice.

    Φ is a function of the text so far, and the wrapper takes Φ as 0 at the end of an episode. So
    the optimal policies are those of the sparse reward for every γ (Ng, Harada & Russell, 1999;
    Grześ, 2017). With ``start="zero"``, Φ is measured from its value at the prompt alone, and at
    γ = 1 the rewards of an episode still sum to its score. With ``start="prompt"`` they sum to the
    score minus β·Φ(prompt). For every γ, the discounted return is lower by that constant per
    prompt. Where a limit from outside truncates an episode, the return is not complete, and Φ(s')
    is paid as it is.

    Cost: one token of the reward model per step, about one more forward pass per episode. The text
    so far stays in a key-value cache. This needs a potential whose read-outs are ``PrefixScores``
    and ``AttentionMap``, as those of the shipped potentials are, and a decoder with keys and values
    in every layer as the reward model. Otherwise every step is a forward pass over the whole text
    so far: with other read-outs, with an encoder, and with a reward model that has its own
    ``read``. A function as the potential needs no forward pass. ``start="prompt"`` reads each
    prompt when the episode begins instead of at its first step.

    Spaces are those of the wrapped environment.

    | key in ``info``   | when | type  | meaning                                          |
    |-------------------|------|-------|--------------------------------------------------|
    | `unshaped_reward` | step | float | what the environment paid                        |
    | `shaping`         | step | float | the term that is added                           |
    | `unshaped_return` | end  | float | sum of `unshaped_reward`, undiscounted           |
    | `shaped_return`   | end  | float | sum of the rewards, undiscounted                 |

    The vector form is :class:`textgym.wrappers.vector.PotentialShaping`.
    :class:`textgym.credit.ShapingCredit` gives the same numbers for a finished completion, from one
    forward pass.

    Args:
        env: A text environment, with any wrappers except another of this class.
        potential: A potential, the name of one, or a function of the prompt's and the completion's
            token ids; see :func:`textgym.credit.get_potential`.
        beta: Factor on the potential.
        gamma: Discount factor of the agent that will learn from the rewards.
        start: "zero" measures Φ from its value at the prompt alone, so that what the prompt is
            worth arrives with the score, at the last token. "prompt" takes Φ as it is, and the
            first token is paid β(γΦ(s') - Φ(prompt)).

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import PotentialShaping
        >>> def length(prompt, completion):
        ...     return 0.5 * len(completion)
        >>> env = PotentialShaping(gym.make("ABC-RLHF-v0"), length)
        >>> observation, info = env.reset(seed=0)
        >>> _, reward, _, _, info = env.step(42)
        >>> reward, info["shaping"], info["unshaped_reward"]
        (0.5, 0.5, 0.0)
    """

    term = "shaping"

    def __init__(
        self,
        env: gym.Env,
        potential: str | Potential | StateFunction,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        start: Start = "zero",
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            potential=potential,
            beta=beta,
            gamma=gamma,
            start=start,
        )
        self.potential = get_potential(potential)
        super().__init__(env, self.potential.needs_causal_reward_model)
        reader = ShapingReader(env, self.potential, beta, gamma, start)
        self._term_reader = reader
        self.beta, self.gamma, self.start = reader.beta, reader.gamma, reader.start


class VectorPotentialShaping(VectorRewardTerm):
    """The vector form of :class:`textgym.wrappers.PotentialShaping`, which states the cost.

    All rows are read together. ``infos`` holds ``unshaped_reward`` and ``shaping`` for every row
    that acted, and ``unshaped_return`` and ``shaped_return`` for those whose episode ended. Under
    ``AutoresetMode.SAME_STEP`` the returns are in ``infos["final_info"]``, with the terms of the
    last step.

    Args:
        env: A batched text environment, with any wrappers except another of this class.
        potential: A potential, the name of one, or a function of the prompt's and the completion's
            token ids; see :func:`textgym.credit.get_potential`.
        beta: Factor on the potential.
        gamma: Discount factor of the agent that will learn from the rewards.
        start: "zero" measures Φ from its value at the prompt alone, so that what the prompt is
            worth arrives with the score, at the last token. "prompt" takes Φ as it is, and the
            first token is paid β(γΦ(s') - Φ(prompt)).

    Raises:
        InvalidArgumentError: If an argument cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import PotentialShaping
        >>> envs = gym.make_vec("ABC-RLHF-v0", num_envs=4)
        >>> envs = PotentialShaping(envs, "prefix-score", gamma=0.99)
        >>> observations, infos = envs.reset(seed=0)
        >>> _, rewards, _, _, infos = envs.step(envs.action_space.sample())
        >>> bool((infos["unshaped_reward"] + infos["shaping"] == rewards).all())
        True
    """

    term = "shaping"

    def __init__(
        self,
        env: VectorEnv,
        potential: str | Potential | StateFunction,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        start: Start = "zero",
    ) -> None:
        self.potential = get_potential(potential)
        super().__init__(env, self.potential.needs_causal_reward_model)
        reader = ShapingReader(env, self.potential, beta, gamma, start)
        self._term_reader = reader
        self.beta, self.gamma, self.start = reader.beta, reader.gamma, reader.start
