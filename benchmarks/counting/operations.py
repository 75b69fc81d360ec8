"""Floating-point operations of an iteration of PPO, counted from shapes.

A multiplication and an addition count 2. For B texts of T tokens, of which R columns are read out,
with M weights in the matrices of the layers, L layers of attention of width A = H·h, hidden states
of width d and a vocabulary of V::

    layers      2·M·B·T  +  4·L·A·B·T²
    vocabulary  2·d·V·B·R

All T² pairs of attention count, although causal attention needs half of them: PyTorch's fused
kernels and its own counter see it so, too. The backward pass does each product twice, for either
factor; a frozen weight gets no gradient of its own, and saves one of them. Norms, activations,
softmax, losses and the optimizer count nothing here; what they cost is memory traffic
(:mod:`counting.traffic`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .shapes import Shape
from .work import Choices, Work

__all__ = ["Operations", "count_operations"]


@dataclass(frozen=True)
class Operations:
    """Operations of one iteration, by stage; those over the vocabulary are in it, too."""

    rollout: float
    reward: float
    reference: float
    old_policy: float
    update: float
    over_vocabulary: float

    @property
    def total(self) -> float:
        """All stages."""
        return sum(asdict(self).values()) - self.over_vocabulary


def count_operations(policy: Shape, reward: Shape, work: Work, choices: Choices) -> Operations:
    """Count an iteration of PPO with its critic on the policy's head.

    The rollout reads the prompts in one pass and then a token at a time. The reward model reads the
    finished texts once. The reference policy and the policy read all texts before the update; each
    epoch reads them forwards and backwards.

    Args:
        policy: The language model.
        reward: The reward model.
        work: The episodes.
        choices: How the policy is trained.
    """
    episodes, steps, fed = work.episodes, work.steps, work.fed
    adapters = policy.adapters(choices.rank)

    def linear(tokens: int) -> float:
        return 2.0 * (policy.matrices + adapters) * tokens

    def vocabulary(columns: int) -> float:
        return 2.0 * policy.head * columns

    pairs = work.prompt**2 + sum(work.prompt + t for t in range(1, steps))
    rollout = (
        linear(episodes * fed) + _attention(policy, episodes * pairs) + vocabulary(episodes * steps)
    )
    texts = episodes * (work.prompt + steps)
    scores = 2.0 * (reward.matrices + reward.width) * texts
    scores += _attention(reward, episodes * (work.prompt + steps) ** 2)

    attention = _attention(policy, episodes * fed**2)
    head = vocabulary(episodes * steps)
    value_head = 2.0 * policy.width * episodes * steps
    layers = linear(episodes * fed) + attention
    without_adapters = 2.0 * policy.matrices * episodes * fed
    if choices.rank:
        # Frozen matrices pass the gradient on and get none; those with adapters likewise.
        backward = without_adapters + 2 * 2.0 * adapters * episodes * fed + 2 * attention + head
    else:
        backward = 2 * layers + 2 * head
    update = layers + head + backward + 3 * value_head
    if choices.recomputes:
        # PyTorch stops before the last product of a layer, whose result nothing waits for.
        update += layers - 2.0 * policy.layers * policy.mlp * policy.width * episodes * fed
    return Operations(
        rollout=rollout,
        reward=scores,
        reference=without_adapters + attention + head,
        old_policy=layers + head + value_head,
        update=work.epochs * update,
        over_vocabulary=head * (3 + work.epochs * (2 if choices.rank else 3)),
    )


def _attention(shape: Shape, pairs: float) -> float:
    """Queries times keys, and weights times values."""
    return 4.0 * shape.layers * shape.queries * pairs
