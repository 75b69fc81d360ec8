"""The vector form of the wrapper that hands over credit."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from textgym.credit import CreditAssigner, get_credit_assigner
from textgym.credit.registry import AttributionFunction
from textgym.wrappers.credit_assignment import redistributed_rewards
from textgym.wrappers.vector._base import TextVectorWrapper

__all__ = ["CreditAssignment"]


class CreditAssignment(TextVectorWrapper):
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
