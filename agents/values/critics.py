"""The values as critics of PPO: ``PPO(policy, env, critic=PotentialCritic(potential))``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from textgym.agents.critics import Critic, HeadCritic, at_cut, paid_before
from textgym.agents.values.monte_carlo import monte_carlo_values, score_function
from textgym.agents.values.potential import state_potentials
from textgym.agents.values.prefix_tree import prefix_tree_values
from textgym.checks import check_whole_number
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from textgym.agents.agent import Agent
    from textgym.agents.policy import Evaluation
    from textgym.agents.rollout import Rollout
    from textgym.credit import Potential, StateFunction

__all__ = ["MonteCarloCritic", "PotentialCritic", "PrefixTreeCritic"]


class PotentialCritic(HeadCritic):
    """V = Φ + a head on the policy, for a potential of your choice.

    Φ should estimate the final score, as :class:`textgym.credit.ReferenceValue` does. What was paid
    before the end is subtracted. The head starts at 0 and learns the rest, such as the KL penalty.

    Args:
        potential: A potential, the name of one, or a function of the prompt's and the completion's
            token ids; see :func:`textgym.credit.get_potential`.

    Raises:
        InvalidArgumentError: If there is no such potential.
    """

    def __init__(self, potential: str | Potential | StateFunction) -> None:
        from textgym.credit import get_potential  # Imported here: slow.

        self.potential = get_potential(potential)

    def set_up(self, agent: Agent) -> None:
        """Keep the environment, whose reward model reads the texts."""
        super().set_up(agent)
        self._env = agent.env

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The potential minus what was paid before; see :class:`Critic`."""
        return self._still_to_come(rollout)[:, :-1].masked_fill(~rollout.completion_mask, 0.0)

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """The potential minus what was paid, and what the head says; see :class:`Critic`."""
        known = at_cut(self._still_to_come(rollout)[:, 1:], rollout)
        return known + super().after_truncation(rollout)

    def _still_to_come(self, rollout: Rollout) -> Tensor:
        """Φ minus what was paid, at the start and after each token, (num_episodes, 1 + steps)."""
        assert self._env is not None
        values = state_potentials(self.potential, self._env, rollout)
        paid = paid_before(rollout, values[:, 0])
        return values - torch.cat([paid, paid[:, -1:] + rollout.credit[:, -1:]], dim=1)


class MonteCarloCritic(HeadCritic):
    """V = the mean score of sampled continuations + a head on the policy: VinePPO's critic.

    Use it with ``gae_lambda=0``. The head starts at 0, and learns what no score says: the KL
    penalty still to come. Without it (``vf_coef=0``) this is VinePPO. See
    :func:`monte_carlo_values` for what holds, and for the cost. It is meant for γ = 1, and for
    credit that sums to the score (``start="zero"``).

    Args:
        num_continuations: K, the number of continuations of each state.

    Attributes:
        num_tokens: Number of tokens sampled for the values of the latest rollout. They are not
            among the agent's ``num_timesteps``.

    Raises:
        InvalidArgumentError: If ``num_continuations`` is less than 1.
    """

    def __init__(self, num_continuations: int) -> None:
        self.num_continuations = check_whole_number("num_continuations", num_continuations, 1)
        self.num_tokens = 0

    def set_up(self, agent: Agent) -> None:
        """Find out how the environment scores texts."""
        super().set_up(agent)
        if agent.env is not None:
            self._score = score_function(agent.env)

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The mean score minus what was paid before; see :class:`Critic`."""
        estimate = monte_carlo_values(
            self.policy, rollout, self._score, self.num_continuations, self.generator
        )
        self.num_tokens = estimate.num_tokens
        paid = rollout.credit.cumsum(dim=1) - rollout.credit
        return (estimate.values - paid).masked_fill(~rollout.completion_mask, 0.0)

    def after_truncation(self, rollout: Rollout) -> Tensor:
        """Not supported; see :class:`Critic`."""
        return Critic.after_truncation(self, rollout)


class PrefixTreeCritic(Critic):
    """V = the mean return of the other completions of the prompt that share the text so far.

    It needs ``group_size`` above 1, and γ = 1. Nothing is learned, and advantages are sampled
    returns minus V, as if λ were 1: RLOO's advantage at the first token, and less noise after
    tokens that others chose, too. See :func:`prefix_tree_values`.
    """

    uses_lambda = False

    def set_up(self, agent: Agent) -> None:
        """Check that there are groups."""
        super().set_up(agent)
        if self.config.group_size < 2:
            raise InvalidArgumentError(
                "group_size", self.config.group_size, "must be at least 2 for the PrefixTreeCritic."
            )
        if self.config.gamma != 1:
            remedy = (
                "must be 1 for the PrefixTreeCritic: the return is known from the first token on, "
                "and a discount would magnify, at each token, what is not yet paid of it."
            )
            raise InvalidArgumentError("gamma", self.config.gamma, remedy)

    def parameters(self) -> list[nn.Parameter]:
        """None; see :class:`Critic`."""
        return []

    def known(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The others' return, less what was paid before; see :class:`Critic`."""
        mask, num_steps = rollout.completion_mask, rollout.completion_mask.shape[1]
        rewards = rewards.masked_fill(~mask, 0.0)
        completion_ids = rollout.input_ids[:, -num_steps:]
        values = prefix_tree_values(
            completion_ids, mask, rewards.sum(dim=1), self.config.group_size
        )
        paid = rewards.cumsum(dim=1) - rewards
        return (values - paid).masked_fill(~mask, 0.0)

    def learned(self, texts: tuple[Tensor, Tensor, Tensor], evaluation: Evaluation) -> Tensor:
        """0; see :class:`Critic`."""
        return torch.zeros_like(evaluation.values)
