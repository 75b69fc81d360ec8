"""Bytes that an iteration moves between memory and processor, and the time that follows.

With few tokens per pass, reading weights and stepping the optimizer take longer than arithmetic. So
two times are added: operations divided by a rate, and bytes divided by a bandwidth. Nothing is
assumed to overlap. Counted are

- every pass over the weights: once per token of the rollout, once per forward pass, twice per
  backward pass, and what casts them to bfloat16;
- the optimizer: weights, gradients and two moments are read, and all but the gradients written;
  before that the norm of the gradients reads them;
- the copy that undoes an iteration: weights and moments, read and written.

Activations and logits are not counted.
"""

from __future__ import annotations

import math

from .memory import count_memory
from .operations import count_operations
from .shapes import Shape
from .work import Choices, Work

__all__ = ["count_traffic", "predict_seconds"]


def count_traffic(policy: Shape, reward: Shape, work: Work, choices: Choices) -> float:
    """Bytes moved in one iteration.

    Args:
        policy: The language model.
        reward: The reward model.
        work: The episodes.
        choices: How the policy is trained.
    """
    memory = count_memory(policy, reward, work, choices)
    used = choices.size * (policy.matrices + policy.head)
    steps = work.epochs * math.ceil(work.episodes / work.minibatch)
    cast = 0 if choices.rank or not choices.is_bfloat16 else 6 * (policy.matrices + policy.head)
    passes = (2 if choices.rank else 3) + choices.recomputes
    update = passes * used + cast + memory.gradients  # gradients are written
    update += memory.gradients + 7 * memory.gradients  # the norm reads them; AdamW
    whole_passes = 2 * (used + cast) + memory.reward_model
    return work.steps * used + cast + whole_passes + steps * update + 2 * memory.snapshot


def predict_seconds(
    policy: Shape,
    reward: Shape,
    work: Work,
    choices: Choices,
    operations_per_second: float,
    bytes_per_second: float,
) -> float:
    """Seconds of one iteration.

    Args:
        policy: The language model.
        reward: The reward model.
        work: The episodes.
        choices: How the policy is trained.
        operations_per_second: Of matrix products.
        bytes_per_second: Of memory, read or written.
    """
    operations = count_operations(policy, reward, work, choices).total
    traffic = count_traffic(policy, reward, work, choices)
    return operations / operations_per_second + traffic / bytes_per_second
