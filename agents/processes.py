"""Several processes that train one agent together, each with a part of the episodes.

``accelerate launch`` starts them (or ``torchrun``), and an agent notices. Hyperparameters keep
their meaning: ``episodes_per_iteration`` and ``minibatch_size`` count the episodes of all processes
together. Every process holds the whole agent, plays its part of the episodes, and takes its part of
each minibatch. Whatever is an average, a moment or a gradient is that of all. So an update equals
that of a single process on the same episodes, and all processes hold the same weights after it.

Means over tokens need care, because processes have different numbers of tokens. Let process r have
n_r of the n tokens of a minibatch, and W be the number of processes. Then

    mean over all tokens = 1/W · Σ_r share_r · (mean over the tokens of r),   share_r = W · n_r / n

so each process multiplies its means over tokens with its share, and all of them are averaged.

Two processes with minibatches of four episodes, two for each::

    process 0   episode 0   1 1 1 0      n_0 = 5, share 10/8
                episode 1   1 1 0 0
    process 1   episode 2   1 0 0 0      n_1 = 3, share  6/8
                episode 3   1 1 0 0
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from textgym.errors import InvalidArgumentError, MissingDependencyError

from .sharding import is_sharded

__all__ = ["ALONE", "Processes"]

_BUCKET = 2**24
"""Numbers that are sent at once: 64 MB of gradients, copied for it."""

T = TypeVar("T")


class Processes:
    """All the processes of a training run, seen from one of them.

    Every method that communicates must be called by all processes, in the same order. With a single
    process they return what they get.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def current(cls, device: str | torch.device) -> Processes:
        """The processes that this one was launched with; a single one if it was not.

        Args:
            device: Where the tensors are that will be sent. On "cuda" each process takes a GPU of
                its own.

        Raises:
            MissingDependencyError: If there are several and ``accelerate`` is not installed.
        """
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if not launched and not torch.distributed.is_initialized():
            return ALONE
        try:
            from accelerate import PartialState
        except ImportError:
            raise MissingDependencyError("accelerate", "scale", "several processes") from None
        state = PartialState(cpu=torch.device(device).type == "cpu")
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    # --- What each process does of the work

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """The consecutive items that belong to this process, equally many for each."""
        length = self.split(len(items))
        return items[self.rank * length : (self.rank + 1) * length]

    def split(self, number: int) -> int:
        """How many of this number belong to each process.

        Raises:
            InvalidArgumentError: If it cannot be divided.
        """
        if number % self.size:
            raise InvalidArgumentError("number", number, f"must be a multiple of {self.size}.")
        return number // self.size

    def own_generator(self, common: torch.Generator) -> torch.Generator:
        """A generator for what should differ between processes.

        Args:
            common: In the same state in all processes, before and after. So the checkpoint of one
                of them is enough to go on from, with as many processes as one likes.
        """
        if self.size == 1:
            return common
        seeds = torch.randint(2**63 - 1, (self.size,), generator=common)
        return torch.Generator().manual_seed(int(seeds[self.rank]))

    # --- What they tell each other

    def total(self, x: Tensor) -> Tensor:
        """The sum over processes, elementwise."""
        if self.size == 1:
            return x
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over processes, elementwise."""
        return x if self.size == 1 else self.total(x) / self.size

    def means(self, scalars: dict[str, float]) -> dict[str, float]:
        """The mean of each scalar; all processes have the same names."""
        if self.size == 1:
            return scalars
        everyones = self._gather(scalars)
        return {name: sum(one[name] for one in everyones) / self.size for name in scalars}

    def concatenate(self, x: Tensor) -> Tensor:
        """Tensors of all processes, one after the other; their lengths may differ."""
        return x if self.size == 1 else torch.cat([y.to(x.device) for y in self._gather(x.cpu())])

    def token_share(self, mask: Tensor) -> Tensor:
        """What a mean over tokens counts here, so that the mean over processes is over all tokens.

        Args:
            mask: True at the tokens of this process.

        Returns:
            W · n_r / n, a float32 scalar; 1 for a single process.
        """
        if self.size == 1:
            return torch.ones((), device=mask.device)
        number = mask.sum().float()
        return self.size * number / self.total(number)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return any(self._gather(flag)) if self.size > 1 else flag

    def of_main(self, value: T) -> T:
        """The value of the main process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def synchronize(self, module: nn.Module) -> None:
        """Give a module the weights that it has in the main process."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor, src=0)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes.

        A parameter that got a gradient in some processes only, as in a mixture of experts, counts
        with 0 in the others. Without any gradient it stays without.
        """
        if self.size == 1:
            return
        parameters = [p for p in parameters if not is_sharded(p)]  # FSDP has averaged the others.
        if not parameters:
            return
        has_gradient = torch.tensor(
            [p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device
        )
        trained = [
            p for p, n in zip(parameters, self.total(has_gradient).tolist(), strict=True) if n
        ]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients: list[Tensor] = [p.grad for p in trained if p.grad is not None]
        for bucket in _buckets(gradients):
            means = self.mean(torch.cat([gradient.flatten() for gradient in bucket]))
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, mean in zip(bucket, means.split(sizes), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def _gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        everyones: list[Any] = gather_object([value])
        return everyones


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Consecutive tensors, about as many together as fit into a bucket."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(t.numel() for t in bucket) >= _BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


ALONE = Processes()
"""A single process."""
