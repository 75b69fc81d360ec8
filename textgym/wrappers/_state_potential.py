"""The potential of the current states, read as cheaply as the potential allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from textgym.credit.potentials import Potential
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, RewardModel, ScoredCompletions
from textgym.models.incremental import IncrementalRewardModel

__all__ = ["StatePotential"]


class StatePotential:
    """Φ of the states that a batch of texts is in.

    Args:
        reward_model: The environment's reward model.
        potential: The potential.

    Raises:
        InvalidArgumentError: If the reward model cannot give what the potential needs.
    """

    def __init__(self, reward_model: RewardModel | Any, potential: Potential) -> None:
        if isinstance(reward_model, RewardModel):
            reward_model.check_readouts(potential.readouts)
        self._reward_model, self._potential = reward_model, potential
        self._reader: IncrementalRewardModel | None = None
        if potential.reads_reward_model and IncrementalRewardModel.can_read(
            reward_model, potential.readouts
        ):
            try:
                self._reader = IncrementalRewardModel(reward_model, potential.readouts)
            except InvalidArgumentError:  # No plain decoder: it reads the whole text every time.
                self._reader = None

    @property
    def is_incremental(self) -> bool:
        """Whether a new token costs one token of the reward model, and not the whole text."""
        return self._reader is not None

    def __call__(self, completions: Completions, rows: np.ndarray) -> np.ndarray:
        """Compute Φ for some rows.

        Args:
            completions: The texts so far, all rows of the batch.
            rows: The rows that are asked about, shape (batch,), bool.

        Returns:
            float64, shape (batch,): Φ of the state, 0 for the other rows.
        """
        values = np.zeros(len(rows))
        if rows.any():
            scored = self._read(completions, torch.from_numpy(rows))
            values[rows] = self._potential.newest(scored).cpu().numpy()
        return values

    def _read(self, completions: Completions, rows: torch.Tensor) -> ScoredCompletions:
        if self._reader is not None:
            return self._reader.read(completions, rows)
        chosen = completions.select(rows)
        if self._potential.reads_reward_model:
            return self._reward_model.read(chosen, self._potential.readouts)
        return ScoredCompletions(
            chosen.input_ids,
            chosen.attention_mask,
            chosen.completion_mask,
            score=torch.full((len(chosen),), torch.nan),  # Nobody scored.
        )
