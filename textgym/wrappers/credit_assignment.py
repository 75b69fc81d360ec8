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
from textgym.envs import TextEnvironment, TextGenerationEnv
from textgym.envs.infos import put
from textgym.errors import InvalidArgumentError
from textgym.models import ScoredCompletions
from textgym.wrappers._text_env import find_text_env
from textgym.wrappers._vector import TextVectorWrapper

__all__ = ["CreditAssignment", "VectorCreditAssignment", "redistributed_rewards"]


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


def _prepare(env: TextEnvironment, assigner: CreditAssigner) -> None:
    """Have an environment compute what an assigner reads, and show its credit.

    Raises:
        InvalidArgumentError: If the reward model cannot give what the assigner needs.
    """
    assigner.check_reward_model(env.reward_model)
    env.request_readouts(assigner.readouts)
    env.rendered_credit = assigner


class CreditAssignment(
    gym.Wrapper[dict[str, np.ndarray], np.int64, dict[str, np.ndarray], np.int64],
    RecordConstructorArgs,
):
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
        self._text_env = find_text_env(
            env, TextGenerationEnv, self.assigner.needs_causal_reward_model
        )
        super().__init__(env)
        _prepare(self._text_env, self.assigner)
        self._paid: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        self._paid = []
        return super().reset(seed=seed, options=options)

    def step(
        self, action: np.int64
    ) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        """Step, and at the end of an episode add its credit to the info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._paid.append(float(reward))
        scored = self._text_env.last_step.scored
        if scored is not None:
            paid, num_steps = np.array([self._paid]), np.array([len(self._paid)])
            info["credit"] = redistributed_rewards(paid, num_steps, scored, self.assigner)[0]
        elif terminated or truncated:
            info["credit"] = np.asarray(self._paid, dtype=np.float32)
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
        _prepare(self._text_env, self.assigner)
        self._paid = np.zeros((self.num_envs, self._text_env.max_new_tokens))
        self._num_steps = np.zeros(self.num_envs, dtype=np.int64)

    def _clear(self, rows: np.ndarray) -> None:
        self._paid[rows] = 0.0
        self._num_steps[rows] = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the credit of the episodes that ended to the infos."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        last = self._text_env.last_step
        acted, finished = last.tokens >= 0, last.finished
        self._paid[acted, self._num_steps[acted]] = rewards[acted]
        self._num_steps[acted] += 1
        over = finished | (acted & (terminated | truncated))
        if over.any():
            credit = self._paid.astype(np.float32)
            if last.scored is not None:
                credit[finished] = redistributed_rewards(
                    self._paid[finished], self._num_steps[finished], last.scored, self.assigner
                )
            put(self._final_infos(infos), "credit", credit[over], over)
            self._clear(finished)
        return observations, rewards, terminated, truncated, infos
