"""A model's weights, their gradients and their optimizer state, split over processes: FSDP2.

PyTorch's ``fully_shard`` (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html)
gathers the weights of a layer when a forward or backward pass comes to it, and drops them after.
All processes must therefore make the same passes. The passes of an update are the same everywhere.
Those of a rollout are not, because episodes end at different times. So the weights stay gathered
while texts are read token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "full",
    "full_state",
    "gathered",
    "is_sharded",
    "load_full_state",
    "shard",
    "shard_like",
    "shard_optimizer_state",
]


def shard(model: PreTrainedModel, value_head: nn.Module, num_processes: int) -> None:
    """Shard a policy over all processes, in place, layer by layer.

    Args:
        model: Equal in all processes. Its parameters become ``DTensor``.
        value_head: So is this.
        num_processes: Number of processes.

    Raises:
        InvalidArgumentError: If there is one process, or the model cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if num_processes == 1:
        remedy = "there is one process: start several with torchrun or accelerate launch."
        raise InvalidArgumentError("shard", True, remedy)
    mesh = init_device_mesh(model.device.type, (num_processes,))
    layer_classes = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in layer_classes]
    try:
        for module in (*layers, model, value_head):
            fully_shard(module, mesh=mesh)
    except (AssertionError, ValueError, NotImplementedError) as error:
        remedy = f"{type(model).__name__} cannot be sharded ({error})"
        raise InvalidArgumentError("shard", True, remedy) from None


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only its part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes a while to import


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A context in which all weights are there, so that forward passes need no other process."""
    from torch.distributed.fsdp import FSDPModule

    modules = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # The outermost module is needed again at once: its backward pass comes first.
            module.set_reshard_after_forward(module is not model, recurse=False)


def full(value: Any) -> Any:
    """A tensor, whole and on the CPU if it was sharded; containers of tensors likewise.

    All processes must call it.
    """
    if isinstance(value, Mapping):
        return {key: full(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [full(one) for one in value]
    if isinstance(value, Tensor) and is_sharded(value):
        return value.full_tensor().cpu()  # type: ignore[attr-defined]
    return value


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with whole tensors; all processes must call it."""
    state: dict[str, Tensor] = full(module.state_dict())
    return state


@torch.no_grad()
def load_full_state(module: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """Give a module the state that :func:`full_state` returned, sharded or not."""
    current = module.state_dict()
    parts = {k: shard_like(t, current[k]) if k in current else t for k, t in state.items()}
    module.load_state_dict(parts, strict=strict)


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """The part of a whole tensor that belongs to this process, if the example is sharded."""
    if not is_sharded(example) or tensor.shape != example.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(example.device),
        example.device_mesh,  # type: ignore[attr-defined]
        example.placements,  # type: ignore[attr-defined]
    )


def shard_optimizer_state(
    state_dict: dict[str, Any], parameters: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """An optimizer's state for parameters that are sharded, or not.

    Args:
        state_dict: With whole tensors, as :func:`full` returned it.
        parameters: Those of the optimizer, in its order.
    """
    state = {
        index: {key: shard_like(value, parameters[index]) for key, value in one.items()}
        for index, one in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
