"""A potential as a critic: its value in every state of a rollout."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from textgym.agents.environment import base_attribute
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.vector import VectorEnv

    from textgym.agents.rollout import Rollout
    from textgym.credit import Potential, StateFunction
    from textgym.models import Readout, RewardModel, ScoredCompletions

__all__ = ["potential_values", "read_rollout", "state_potentials"]

_BATCH_SIZE = 64
"""Texts that the reward model reads together."""


def potential_values(
    potential: str | Potential | StateFunction, env: gym.Env | VectorEnv, rollout: Rollout
) -> Tensor:
    """Compute Φ of the state in which each token was chosen, as a critic that does not learn.

    With the same λ and γ = 1, these values give the advantages that a learned critic, at zero,
    gives when ``PotentialShaping`` pays differences of Φ from the prompt on (Wiewiora, 2003). With
    λ = 1 they are a baseline, and bias nothing. With λ = 0 they are trusted to be the value of the
    policy.

    Args:
        potential: A potential, the name of one, or a function of the prompt's and the completion's
            token ids; see :func:`textgym.credit.get_potential`.
        env: The text environment whose reward model reads the texts.
        rollout: Episodes of any policy.

    Returns:
        float32 (num_episodes, num_steps), 0 outside the mask.

    Raises:
        InvalidArgumentError: If there is no such potential, or the environment has no reward model
            that gives what it needs.
    """
    values = state_potentials(potential, env, rollout)[:, :-1]
    return values.masked_fill(~rollout.completion_mask, 0.0)


def state_potentials(
    potential: str | Potential | StateFunction, env: gym.Env | VectorEnv, rollout: Rollout
) -> Tensor:
    """Compute Φ of all states of a rollout, the last ones included.

    Args and errors are those of :func:`potential_values`.

    Returns:
        Φ at the start and after each token, float32 (num_episodes, 1 + num_steps). Columns after
        the last token of an episode are 0.
    """
    from textgym.credit import get_potential  # Imported here: slow.

    potential = get_potential(potential)
    scored = read_rollout(env, rollout, potential.readouts)
    after = potential(scored)[:, -rollout.completion_mask.shape[1] :]
    start = potential.start_values(scored)[:, None]
    return torch.cat([start, after], dim=1).to(rollout.rewards)


def read_rollout(
    env: gym.Env | VectorEnv, rollout: Rollout, readouts: Collection[Readout]
) -> ScoredCompletions:
    """Read out of the reward model what it says about the texts of a rollout.

    Args:
        env: The text environment that has the reward model.
        rollout: The episodes.
        readouts: See :mod:`textgym.models.readouts`.

    Returns:
        The episodes in the layout of the rollout's ``input_ids``, with the read-outs, and with the
        scores that the environment gave them; on the CPU.

    Raises:
        InvalidArgumentError: If the environment has no reward model.
    """
    from textgym.models import Completions  # Imported here: slow.

    reward_model: RewardModel | None = base_attribute(env, "reward_model")
    if reward_model is None:
        raise InvalidArgumentError("env", env, "pass a text environment, with a reward model.")
    num_prompt = rollout.input_ids.shape[1] - rollout.completion_mask.shape[1]
    completion_mask = pad(rollout.completion_mask, (num_prompt, 0))  # (num_episodes, num_tokens)
    texts = Completions(rollout.input_ids, rollout.attention_mask, completion_mask).to("cpu")
    batches = [
        reward_model.read(texts.select(rows), readouts)
        for rows in torch.arange(len(texts)).split(_BATCH_SIZE)
    ]
    values = {
        readout: torch.cat([batch[readout].cpu() for batch in batches]) for readout in readouts
    }
    return texts.with_score(rollout.scores.cpu(), values, reward_model)
