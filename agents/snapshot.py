"""A copy of everything that an iteration changes, to undo an iteration that is interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot"]


class Snapshot:
    """Copies of an agent's trained weights, optimizer state, generators and a few other values.

    The weights and the optimizer's two moments are copied on their device, which takes three times
    the memory of the trained weights; the next :meth:`take` reuses it. With five million weights, a
    copy takes about 5 ms on one processor core.

    Args:
        parameters: The trained parameters by name.
        optimizer: Their optimizer.
        generators: The random generators by name.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        self._parameters, self._optimizer, self._generators = parameters, optimizer, generators
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._generator_states: dict[str, Tensor] = {}
        self._values: dict[str, Any] = {}

    @torch.no_grad()
    def take(self, **values: Any) -> None:
        """Copy the state as it is now, and keep some values with it, which must not change."""
        buffers = self._tensors
        self._tensors = {
            key: buffers[key].copy_(tensor) if key in buffers else tensor.clone()
            for key, tensor in self._changing_tensors().items()
        }
        self._generator_states = {name: g.get_state() for name, g in self._generators.items()}
        self._values = values

    @torch.no_grad()
    def restore(self) -> dict[str, Any]:
        """Put everything back into the state of the last :meth:`take`; returns its values.

        If this is interrupted, too, it can be called again.
        """
        for key, tensor in self._changing_tensors().items():
            if key in self._tensors:
                tensor.copy_(self._tensors[key])
            else:  # The optimizer's state of this parameter began after the last take.
                self._optimizer.state.pop(self._parameters[key[0]], None)
        for name, state in self._generator_states.items():
            self._generators[name].set_state(state)
        return self._values

    def _changing_tensors(self) -> dict[tuple[str, str], Tensor]:
        """Weights and optimizer state, by the names of the parameter and of the tensor."""
        tensors: dict[tuple[str, str], Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[name, "weight"] = parameter
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[name, key] = value
        return tensors
