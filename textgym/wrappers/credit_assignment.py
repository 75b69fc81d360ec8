"""Hands over per-token credit when an episode ends."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.credit import CreditAssigner, get_credit_assigner
from textgym.credit.checks import check_finite_credit
from textgym.credit.registry import AttributionFunction
from textgym.envs import TextEnvironment
from textgym.envs.infos import put
from textgym.errors import InvalidArgumentError
from textgym.models import ScoredCompletions
from textgym.wrappers._forms import TextVectorWrapper, TextWrapper

__all__ = ["CreditAssignment", "CreditLedger", "VectorCreditAssignment", "redistributed_rewards"]


def redistributed_rewards(
    paid: np.ndarray, num_steps: np.ndarray, scored: ScoredCompletions, assigner: CreditAssigner
) -> np.ndarray:
    """The rewards of finished episodes, with the score replaced by its credit.

    Args:
        paid: What each step paid, shape (batch, columns), float64, 0 after the last step. The score
            is part of what the last step paid.
        num_steps: Number of steps of each episode, shape (batch,).
        scored: The completions that the episodes wrote, in the same order.
        assigner: Shares out the score.

    Returns:
        float32, shape (batch, columns), 0 after the last step. A row sums to what was paid in it,
        minus the assigner's start value.

    Raises:
        InvalidArgumentError: If an episode has another number of steps than of tokens, or a token
            gets credit that is not finite.
    """
    mask = scored.completion_mask.cpu().numpy()
    if (mask.sum(axis=1) != num_steps).any():
        raise InvalidArgumentError(
            "env",
            num_steps,
            f"its episodes wrote {mask.sum(axis=1)} tokens in so many steps; put CreditAssignment "
            "below wrappers that take several steps at once",
        )
    rewards = paid.astype(np.float64)
    rewards[np.arange(len(rewards)), num_steps - 1] -= scored.score.cpu().numpy()
    # Both selections run row by row, and a row has as many steps as tokens.
    is_step = np.arange(rewards.shape[1]) < num_steps[:, None]
    credit = assigner(scored)
    check_finite_credit(credit, scored, repr(assigner))
    rewards[is_step] += credit.cpu().numpy()[mask]
    return rewards.astype(np.float32)


class CreditLedger:
    """Keeps what the steps of each episode paid, and gives its credit at the end.

    The environment is told to compute what the assigner reads, and to show its credit.

    Args:
        env: The text environment, single or batched.
        assigner: Shares out the score.

    Raises:
        InvalidArgumentError: If the reward model cannot give what the assigner needs.
    """

    def __init__(self, env: TextEnvironment, assigner: CreditAssigner) -> None:
        assigner.check_reward_model(env.reward_model)
        env.request_readouts(assigner.readouts)
        env.rendered_credit = assigner
        self._env, self._assigner = env, assigner
        num_envs = len(env.ended)
        self._paid = np.zeros((num_envs, env.max_new_tokens))
        self.num_steps = np.zeros(num_envs, dtype=np.int64)

    def clear(self, rows: np.ndarray) -> None:
        """Start anew in some rows, bool, shape (num_envs,)."""
        self._paid[rows] = 0.0
        self.num_steps[rows] = 0

    def add(self, rewards: np.ndarray, done: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Enter the step just taken.

        Args:
            rewards: What it paid, float64, shape (num_envs,).
            done: Rows that it terminated or truncated, bool, shape (num_envs,).

        Returns:
            The rows whose episode is over, bool, shape (num_envs,); and their credit, float32,
            shape (rows.sum(), max_new_tokens), 0 after the last step.

        Raises:
            InvalidArgumentError: If credit cannot be told; see :func:`redistributed_rewards`.
        """
        last = self._env.last_step
        acted, finished = last.tokens >= 0, last.finished
        self._paid[acted, self.num_steps[acted]] = rewards[acted]
        self.num_steps[acted] += 1
        credit = self._paid.astype(np.float32)
        if last.scored is not None:
            credit[finished] = redistributed_rewards(
                self._paid[finished], self.num_steps[finished], last.scored, self._assigner
            )
        over = finished | (acted & done)
        return over, credit[over]


class CreditAssignment(TextWrapper):
    """Adds ``info["credit"]`` at the end of an episode; changes nothing else.

    Hindsight credit exists only when the completion does, so ``step`` cannot pay it in time. The
    array has one number per step of the episode. It sums to what ``step`` paid in it; with an
    assigner of ``start="prompt"``, to that minus the prompt's score. An agent that collects whole
    episodes can learn from it instead of the rewards. An episode cut short by a limit from outside
    has no score, so its credit is what its steps paid.

    | key in ``info`` | when | type                  | meaning                                     |
    |-----------------|------|-----------------------|---------------------------------------------|
    | `credit`        | end  | float32, (num_steps,) | the rewards, with the score shared out      |

    The vector form is :class:`textgym.wrappers.vector.CreditAssignment`. Use it for batches:
    Gymnasium's own ``SyncVectorEnv`` cannot batch infos of unequal length.

    Args:
        env: A text environment, with any wrappers.
        credit: A credit assigner, the name of one, or a function from scored completions to
            attributions; see :func:`textgym.credit.get_credit_assigner`.

    Raises:
        InvalidArgumentError: If the environment or the name cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers import CreditAssignment
        >>> env = CreditAssignment(gym.make("ABC-RLHF-v0"), "abc")
        >>> observation, info = env.reset(seed=0)
        >>> terminated = False
        >>> while not terminated:
        ...     _, reward, terminated, _, info = env.step(env.action_space.sample())
        >>> bool(abs(info["credit"].sum() - info["score"]) < 1e-4)
        True
    """

    def __init__(
        self, env: gym.Env, credit: str | CreditAssigner | AttributionFunction = "abc"
    ) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, credit=credit)
        self.assigner = get_credit_assigner(credit)
        super().__init__(env, self.assigner.needs_causal_reward_model)
        self._ledger = CreditLedger(self._text_env, self.assigner)

    def _begin(self, info: dict[str, Any]) -> None:
        self._ledger.clear(np.array([True]))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and at the end of an episode add its credit to the info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        over, credit = self._ledger.add(np.array([reward]), np.array([terminated or truncated]))
        if over[0]:
            info["credit"] = credit[0, : self._ledger.num_steps[0]]
            self._ledger.clear(over)
        return observation, reward, terminated, truncated, info


class VectorCreditAssignment(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.CreditAssignment`.

    ``infos["credit"]`` is float32 of shape (num_envs, max_new_tokens): the credit of the rows whose
    episode ended in this step, 0 after the last token and in the other rows. The mask
    ``infos["_credit"]``, bool of shape (num_envs,), names the rows. Under
    ``AutoresetMode.SAME_STEP`` both are in ``infos["final_info"]``.

    Args:
        env: A batched text environment, with any wrappers.
        credit: A credit assigner, the name of one, or a function from scored completions to
            attributions; see :func:`textgym.credit.get_credit_assigner`.

    Raises:
        InvalidArgumentError: If the environment or the name cannot be used.

    Example:
        >>> import gymnasium as gym
        >>> import textgym
        >>> from textgym.wrappers.vector import CreditAssignment
        >>> envs = CreditAssignment(gym.make_vec("ABC-RLHF-v0", num_envs=2), "abc")
        >>> _ = envs.reset(seed=0, options={"max_new_tokens": 2})
        >>> for _ in range(2):
        ...     _, rewards, _, _, infos = envs.step(envs.action_space.sample())
        >>> infos["credit"].shape, infos["_credit"]
        ((2, 16), array([ True,  True]))
        >>> bool(abs(infos["credit"].sum(axis=1) - rewards).max() < 1e-4)
        True
    """

    def __init__(
        self, env: VectorEnv, credit: str | CreditAssigner | AttributionFunction = "abc"
    ) -> None:
        self.assigner = get_credit_assigner(credit)
        super().__init__(env, self.assigner.needs_causal_reward_model)
        self._ledger = CreditLedger(self._text_env, self.assigner)

    def _begin(self, rows: np.ndarray, infos: dict[str, Any]) -> None:
        self._ledger.clear(rows)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the credit of the episodes that ended to the infos."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        over, credit = self._ledger.add(rewards, terminated | truncated)
        if over.any():
            put(self._final_infos(infos), "credit", credit, over)
            self._ledger.clear(self._text_env.last_step.finished)
        return observations, rewards, terminated, truncated, infos
