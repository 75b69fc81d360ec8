"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonWithAdamW", "MuonWithAdamWFactory"]


class MuonWithAdamW(Optimizer):
    """Two optimizers stepped together, so that a training loop that knows one can drive both.

    Muon (Jordan et al., 2024) is meant for the weight matrices inside the network; embeddings,
    the output head and the norms keep AdamW. The parameter groups are those of the two
    optimizers, so a learning-rate schedule scales both.

    Args:
        model: The model; matrices under a module list (its blocks) go to Muon.
        muon_lr: Learning rate of Muon.
        muon_weight_decay: Decoupled weight decay of Muon.
        adamw_lr: Learning rate of AdamW, which runs with betas (0.9, 0.95) and no weight decay.
    """

    def __init__(
        self, model: nn.Module, muon_lr: float, muon_weight_decay: float, adamw_lr: float
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (matrices if ".layers." in name and parameter.ndim == 2 else rest).append(parameter)
        super().__init__([*matrices, *rest], {})
        self._parts: list[Optimizer] = [
            Muon(matrices, lr=muon_lr, weight_decay=muon_weight_decay),
            AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        """Step both optimizers; see :meth:`torch.optim.Optimizer.step`."""
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The two optimizers' states, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


class MuonWithAdamWFactory:
    """Builds the optimizer from the whole model, as ``transformers.Trainer`` asks for it."""

    def __call__(self, model: nn.Module, **kwargs: Any) -> MuonWithAdamW:
        """Build the optimizer for ``model``."""
        return MuonWithAdamW(model, **kwargs)
