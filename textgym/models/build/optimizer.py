"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonWithAdamW", "MuonWithAdamWFactory"]


class MuonWithAdamW(Optimizer):
    """Two optimizers behind the interface of one, so that any training loop can drive both.

    Muon (Jordan et al., 2024) is meant for the weight matrices inside the network. Embeddings, the
    output head and the norms stay with AdamW. The parameter groups of both optimizers are exposed,
    so a learning-rate schedule scales both.

    Args:
        model: The model. Matrices in a module list named ``layers`` (its blocks) go to Muon.
        muon_lr: Learning rate of Muon.
        muon_weight_decay: Decoupled weight decay of Muon.
        adamw_lr: Learning rate of AdamW, which has betas (0.9, 0.95) and no weight decay.
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
        """The states of the two optimizers, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state returned by :meth:`state_dict`."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


class MuonWithAdamWFactory:
    """Builds the optimizer from the whole model, the form that ``transformers.Trainer`` takes."""

    def __call__(self, model: nn.Module, **kwargs: Any) -> MuonWithAdamW:
        """Build the optimizer for ``model``."""
        return MuonWithAdamW(model, **kwargs)
