"""A copy of everything that an iteration changes, to undo an iteration that is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["Snapshot"]


class Snapshot:
    """An agent's training state between two iterations.

    The trained weights and the optimizer's two moments are copied on their device, which takes
    three times the memory of the trained weights; the next :meth:`take` reuses it. With five
    million weights, a copy takes about 5 ms on one processor core.

    Args:
        agent: The agent; its state is taken once, at the start.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Copy the agent's state as it is now."""
        agent, buffers = self._agent, self._tensors
        self._tensors = {
            key: buffers[key].copy_(tensor) if key in buffers else tensor.clone()
            for key, tensor in self._changing_tensors().items()
        }
        self._generators = {name: g.get_state() for name, g in agent._generators.items()}
        self._kl_coef = agent.kl_controller.coef
        self._num_timesteps = agent.num_timesteps
        self._num_iterations = len(agent.history)
        self._seconds = agent._seconds

    @torch.no_grad()
    def restore(self) -> None:
        """Put the agent back into the state of the last :meth:`take`.

        If this is interrupted, too, it can be called again.
        """
        agent = self._agent
        for key, tensor in self._changing_tensors().items():
            if key in self._tensors:
                tensor.copy_(self._tensors[key])
            else:  # The optimizer's state of this parameter began in the iteration to be undone.
                agent.optimizer.state.pop(agent.trained_parameters[key[0]], None)
        for name, state in self._generators.items():
            agent._generators[name].set_state(state)
        agent.kl_controller.coef = self._kl_coef
        agent.num_timesteps = self._num_timesteps
        del agent.history[self._num_iterations :]
        agent._seconds = self._seconds

    def _changing_tensors(self) -> dict[tuple[str, str], Tensor]:
        """Weights and optimizer state, by the names of the parameter and of the tensor."""
        tensors: dict[tuple[str, str], Tensor] = {}
        for name, parameter in self._agent.trained_parameters.items():
            tensors[name, "weight"] = parameter
            for key, value in self._agent.optimizer.state.get(parameter, {}).items():
                tensors[name, key] = value
        return tensors
