"""Hands over per-token credit when an episode ends."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from textgym.credit import CreditAssigner, get_credit_assigner
from textgym.credit.registry import AttributionFunction
from textgym.envs import TextGenerationEnv
from textgym.wrappers._text_env import find_text_env
from textgym.wrappers._vector import TextVectorWrapper

__all__ = ["CreditAssignment", "VectorCreditAssignment", "redistributed_rewards"]


def redistributed_rewards(rewards: list[float], score: float, credit: np.ndarray) -> np.ndarray:
    """Replace the score within the rewards of an episode by its credit.

    Args:
        rewards: What each step paid, the score being part of the last one.
        score: The score.
        credit: Credit per token, shape (num_steps,), summing to the score.

    Returns:
        float32, shape (num_steps,), with the sum of ``rewards``.
    """
    rest = np.asarray(rewards, dtype=np.float64)
    rest[-1] -= score
    return (rest + credit).astype(np.float32)


class CreditAssignment(
    gym.Wrapper[dict[str, np.ndarray], np.int64, dict[str, np.ndarray], np.int64],
    RecordConstructorArgs,
):
    """Adds ``info["credit"]`` at the end of an episode; changes nothing else.

    Hindsight credit exists only when the completion does, so ``step`` cannot pay it in time. The
    array holds one number per step of the episode, float32, and sums to what ``step`` paid in it,
    so an agent that collects whole episodes learns from it in place of the rewards. An episode
    that a limit from outside cut short has no score: its credit is what its steps paid.

    The vector form is :class:`textgym.wrappers.vector.CreditAssignment`. Gymnasium's own
    ``SyncVectorEnv`` cannot batch infos of unequal length, so batches need that form.

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
        >>> env = CreditAssignment(gym.make("ABC-RLHF-v0"), "attention")
        >>> observation, info = env.reset(seed=0)
        >>> terminated = False
        >>> while not terminated:
        ...     _, reward, terminated, _, info = env.step(env.action_space.sample())
        >>> bool(abs(info["credit"].sum() - info["score"]) < 1e-4)
        True
    """

    def __init__(
        self, env: gym.Env, credit: str | CreditAssigner | AttributionFunction = "attention"
    ) -> None:
        RecordConstructorArgs.__init__(self, credit=credit)
        self.assigner = get_credit_assigner(credit)
        self._text_env: TextGenerationEnv = find_text_env(
            env, TextGenerationEnv, self.assigner.needs_causal_reward_model
        )
        self.assigner.check_reward_model(self._text_env.reward_model)
        super().__init__(env)
        self._text_env.request_readouts(self.assigner.readouts)
        self._text_env.rendered_credit = self.assigner
        self._rewards: list[float] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode."""
        self._rewards = []
        return super().reset(seed=seed, options=options)

    def step(
        self, action: np.int64
    ) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        """Step, and at the end of an episode add its credit to the info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._rewards.append(float(reward))
        if terminated:
            scored = self._text_env.scored
            assert scored is not None
            credit = self.assigner(scored)[scored.completion_mask].cpu().numpy()
            info["credit"] = redistributed_rewards(self._rewards, float(scored.score[0]), credit)
        elif truncated:
            info["credit"] = np.asarray(self._rewards, dtype=np.float32)
        return observation, reward, terminated, truncated, info


class VectorCreditAssignment(TextVectorWrapper):
    """The vector form of :class:`textgym.wrappers.CreditAssignment`.

    ``infos["credit"]`` is an object array of shape (num_envs,): at the rows whose episode ended in
    this step, the float32 array of shape (num_steps,) that the single wrapper gives; the mask is
    ``infos["_credit"]``. Under ``AutoresetMode.SAME_STEP`` it is in ``infos["final_info"]``.

    Args:
        env: A batched text environment, with any wrappers.
        credit: A credit assigner, the name of one, or a function from scored completions to
            attributions; see :func:`textgym.credit.get_credit_assigner`.

    Raises:
        InvalidArgumentError: If the environment or the name cannot be used.
    """

    def __init__(
        self, env: VectorEnv, credit: str | CreditAssigner | AttributionFunction = "attention"
    ) -> None:
        self.assigner = get_credit_assigner(credit)
        super().__init__(env, self.assigner.needs_causal_reward_model)
        self.assigner.check_reward_model(self._text_env.reward_model)
        self._text_env.request_readouts(self.assigner.readouts)
        self._text_env.rendered_credit = self.assigner
        self._rewards: list[list[float]] = [[] for _ in range(self.num_envs)]

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes."""
        result = self.env.reset(seed=seed, options=options)
        for row in np.flatnonzero(self._rows_to_reset(options)):
            self._rewards[row] = []
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the credit of the episodes that ended to the infos."""
        waiting = self._text_env.ended
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        for row in np.flatnonzero(~waiting):
            self._rewards[row].append(float(rewards[row]))
        scored = self._text_env.scored
        if scored is not None:
            shares = self.assigner(scored).cpu().numpy()
            masks = scored.completion_mask.cpu().numpy()
            credit = np.full(self.num_envs, None, dtype=object)
            for i, row in enumerate(self._text_env.scored_rows):
                credit[row] = redistributed_rewards(
                    self._rewards[row], float(scored.score[i]), shares[i][masks[i]]
                )
                self._rewards[row] = []
            has_credit = np.array([one is not None for one in credit])
            self._final_infos(infos).update({"credit": credit, "_credit": has_credit})
        return observations, rewards, terminated, truncated, infos
