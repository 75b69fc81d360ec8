"""Wrappers for the batched environment that ``gym.make_vec`` returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from textgym.credit import CreditAssigner, get_credit_assigner
from textgym.credit.registry import AttributionFunction
from textgym.envs import TextGenerationVectorEnv
from textgym.potentials import Potential, StateFunction
from textgym.wrappers._text_env import find_text_env
from textgym.wrappers.attention_shaping import check_shaping
from textgym.wrappers.credit_assignment import redistributed_rewards

__all__ = ["AttentionShaping", "CreditAssignment"]


class _EpisodeWrapper(VectorWrapper):
    """Knows which rows act in a step, and where the infos of a finished episode belong."""

    def __init__(self, env: VectorEnv, needs_causal_reward_model: bool) -> None:
        self._text_env: TextGenerationVectorEnv = find_text_env(
            env, TextGenerationVectorEnv, needs_causal_reward_model
        )
        super().__init__(env)

    def _rows_to_reset(self, options: dict[str, Any] | None) -> np.ndarray:
        mask = (options or {}).get("reset_mask")
        return np.ones(self.num_envs, dtype=np.bool_) if mask is None else mask

    def _final_infos(self, infos: dict[str, Any]) -> dict[str, Any]:
        """The dict that the infos of finished episodes belong in."""
        if self._text_env.autoreset_mode is AutoresetMode.SAME_STEP:
            return infos.setdefault("final_info", {})
        return infos


class CreditAssignment(_EpisodeWrapper):
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


class AttentionShaping(_EpisodeWrapper):
    """The vector form of :class:`textgym.wrappers.AttentionShaping`.

    All rows are read in one forward pass per step. ``infos`` holds ``unshaped_reward`` and
    ``shaping`` for every row that acted, and ``unshaped_return`` and ``shaped_return`` for those
    whose episode ended (under ``AutoresetMode.SAME_STEP``, in ``infos["final_info"]``).

    Args:
        env: A batched text environment, with any wrappers.
        beta: Factor on the potential.
        potential: See :func:`textgym.potentials.get_potential`; None for the attention-weighted
            prefix score.
        gamma: Discount factor of the agent that will learn from the rewards.

    Raises:
        InvalidArgumentError: If an argument cannot be used.
    """

    def __init__(
        self,
        env: VectorEnv,
        beta: float = 1.0,
        potential: str | Potential | StateFunction | None = None,
        gamma: float = 1.0,
    ) -> None:
        self.beta, self.potential, self.gamma = check_shaping(beta, potential, gamma)
        super().__init__(env, self.potential.needs_causal_reward_model)
        self._phi = np.zeros(self.num_envs)
        self._unshaped_return = np.zeros(self.num_envs)
        self._shaped_return = np.zeros(self.num_envs)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes; the potential is 0 there."""
        result = self.env.reset(seed=seed, options=options)
        self._clear(self._rows_to_reset(options))
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the shaping to the rewards of the rows that acted."""
        acting = ~self._text_env.ended
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        finished = np.zeros(self.num_envs, dtype=np.bool_)
        finished[self._text_env.scored_rows] = True
        phi = self.beta * self._potential_of(acting & ~finished)
        shaping = np.where(acting, self.gamma * phi - self._phi, 0.0)
        shaped = rewards + shaping
        self._phi = phi
        self._unshaped_return += np.where(acting, rewards, 0.0)
        self._shaped_return += np.where(acting, shaped, 0.0)
        for name, values in (("unshaped_reward", rewards), ("shaping", shaping)):
            infos[name], infos[f"_{name}"] = np.where(acting, values, 0.0), acting.copy()
        over = finished | (acting & truncated)
        if over.any():
            final = self._final_infos(infos)
            for name, values in (
                ("unshaped_return", self._unshaped_return),
                ("shaped_return", self._shaped_return),
            ):
                final[name], final[f"_{name}"] = np.where(over, values, 0.0), over.copy()
        self._clear(finished)
        return observations, shaped, terminated, truncated, infos

    def _potential_of(self, rows: np.ndarray) -> np.ndarray:
        """Φ of the current text where ``rows`` is True, 0 elsewhere, shape (num_envs,)."""
        phi = np.zeros(self.num_envs)
        if rows.any():
            texts = self._text_env.completions.select(torch.from_numpy(rows))
            scored = self._text_env.reward_model.read(texts, self.potential.readouts)
            last = scored.attention_mask.sum(dim=1, keepdim=True) - 1
            phi[rows] = self.potential(scored).gather(1, last)[:, 0].cpu().numpy()
        return phi

    def _clear(self, rows: np.ndarray) -> None:
        for values in (self._phi, self._unshaped_return, self._shaped_return):
            values[rows] = 0.0
