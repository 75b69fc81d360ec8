"""Potentials: functions of the state that say how well the text so far stands.

Paying the difference γΦ(s') - Φ(s) at every step leaves the optimal policies unchanged (Ng, Harada
& Russell, 1999), provided that Φ depends on the state alone and is 0 at the end of an episode
(Grześ, 2017). The potentials here are measured from that of the prompt alone, so that they are 0
at the start as well and the prompt's mood is not paid to the first token; at γ = 1 the rewards of
an episode then still sum to its score.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models import AttentionMap, PrefixScores, Readout, ScoredCompletions
from textgym.models.readouts import Heads, Layers

__all__ = [
    "POTENTIALS",
    "AttentionWeightedPrefixScore",
    "FunctionPotential",
    "Potential",
    "PrefixScore",
    "StateFunction",
    "get_potential",
    "register_potential",
]


_MOST_STARTS = 4096  # prompts whose value is kept; a source may never draw one twice

StateFunction = Callable[[Tensor, Tensor], float]
"""Φ as a function of the prompt's and the completion's token ids, int64 of one axis each."""


class Potential(ABC):
    """Φ of every state that a batch of completions passed through.

    Attributes:
        name: Short name.
        paper: Where it comes from.
        readouts: What the reward model must read out; see :mod:`textgym.models.readouts`.
        needs_causal_reward_model: Whether it is a function of the state only if the reward model
            does not look ahead.
        reads_reward_model: Whether it looks at anything that the reward model says; one that looks
            at the tokens alone spares the forward passes.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = "none"
    readouts: frozenset[Readout] = frozenset()
    needs_causal_reward_model: ClassVar[bool] = False
    reads_reward_model: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential after each token of the completions.

        Args:
            scored: Completions with the read-outs that the potential needs; rows without any
                generated token are allowed.

        Returns:
            float32, shape (batch, num_tokens): Φ of the state that ends with this token, 0 outside
            the completion. The value at the last token is Φ before it is known that the episode
            ended there; whoever uses it puts 0 in its place at the end of an episode.
        """

    def newest(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential of the states that the texts end in, and of no other.

        Args:
            scored: As in :meth:`__call__`.

        Returns:
            float32, shape (batch,): what :meth:`__call__` gives at the last tokens, 0 for rows
            without any generated token.
        """
        index = torch.arange(scored.input_ids.shape[1], device=scored.input_ids.device)
        last = torch.where(scored.attention_mask, index, 0).max(dim=1, keepdim=True).values
        return self(scored).gather(1, last)[:, 0]

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({arguments})"


POTENTIALS: dict[str, type[Potential]] = {}
"""The potentials by name."""


def register_potential(potential: type[Potential]) -> type[Potential]:
    """Make a potential known by its name; a decorator.

    Args:
        potential: A subclass of :class:`Potential` whose constructor needs no argument.

    Returns:
        The class, unchanged.

    Raises:
        InvalidArgumentError: If its name is taken.
    """
    known = POTENTIALS.get(potential.name)
    if known is not None and known.__name__ != potential.__name__:
        raise InvalidArgumentError("name", potential.name, f"is taken by {known.__name__}")
    POTENTIALS[potential.name] = potential
    return potential


def get_potential(potential: str | Potential | StateFunction | None) -> Potential:
    """Make a potential of what a user passes.

    Args:
        potential: A name of :data:`POTENTIALS`; a potential, which is returned as it is; a function
            of the state, see :class:`FunctionPotential`; or None for the attention-weighted prefix
            score.

    Raises:
        InvalidArgumentError: If there is no such potential.

    >>> get_potential("prefix-score")
    PrefixScore()
    """
    if potential is None:
        return AttentionWeightedPrefixScore()
    if isinstance(potential, Potential):
        return potential
    if isinstance(potential, str) and potential in POTENTIALS:
        return POTENTIALS[potential]()
    if not isinstance(potential, str) and callable(potential):
        return FunctionPotential(potential)
    raise InvalidArgumentError(
        "potential",
        potential,
        f"pass one of {', '.join(POTENTIALS)}, a textgym.credit.Potential, or a function of "
        "(prompt_ids, completion_ids)",
    )


def _start_score(scored: ScoredCompletions) -> Tensor:
    """Score of each prompt alone, shape (batch, 1)."""
    num_tokens = scored.input_ids.shape[1]
    index = torch.arange(num_tokens, device=scored.input_ids.device)
    last = torch.where(scored.prompt_mask, index, -1).max(dim=1, keepdim=True).values
    start = scored[PrefixScores()].gather(1, last.clamp(min=0))
    return start.masked_fill(last < 0, 0.0)


@register_potential
class PrefixScore(Potential):
    """The reward model's score of the text so far: Φ_t = s_t - s_0.

    For a finished completion the differences of this potential are the credit of RED (Li et al.,
    2024, arXiv 2411.08302), s_t - s_{t-1}.

    Cost: nothing beyond the forward pass that scores, where the reward model is a decoder; an
    encoder takes a forward pass per prefix. Guarantee: Φ depends on the text so far alone.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> PrefixScore()(five_tokens({PrefixScores(): scores}))[0, 2:]
        tensor([0.0000, 1.0000, 0.5000, 0.5000, 1.5000])
    """

    name = "prefix-score"
    paper = "arXiv 2411.08302"
    readouts = frozenset({PrefixScores()})

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`."""
        potential = scored[PrefixScores()] - _start_score(scored)
        return potential.masked_fill(~scored.completion_mask, 0.0)


@register_potential
class AttentionWeightedPrefixScore(Potential):
    """The attention-weighted mean of the prefix scores: Φ_t = Σ_{i≤t} α_i^(t) s_i - s_0.

    α^(t) is the attention row of token t, cut to the completion and normalised; s_i is the score of
    the text that ends with token i. It is the causal form of Attention-Based Credit (Chan et al.,
    2024, arXiv 2402.00782). Where a token pays all its attention to the prompt, there are no
    weights to normalise, and its own prefix score is taken.

    Cost: no further pass; the attention map of the layer is computed besides the fused kernel.
    Guarantee: Φ depends on the text so far alone, with a reward model that does not look ahead.

    Args:
        layers: The layer whose attention counts, the last by default, or several, whose mean is
            taken.
        heads: How the heads are reduced: "mean", "max", or the number of one.

    Raises:
        InvalidArgumentError: If an argument names no layer or no reduction.

    Example:
        Every token attends to itself and to the token before it in equal parts; the first token of
        the completion has only itself there, since the prompt does not count.

        >>> from textgym.credit._example import five_tokens
        >>> scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]
        >>> rows = [[0.5 * (s - t in (0, 1)) for t in range(7)] for s in range(7)]
        >>> scored = five_tokens({PrefixScores(): scores, AttentionMap(): rows})
        >>> AttentionWeightedPrefixScore()(scored)[0, 2:]
        tensor([0.0000, 0.5000, 0.7500, 0.5000, 1.0000])
    """

    name = "attention-weighted-prefix-score"
    paper = "after arXiv 2402.00782"
    readouts = frozenset({PrefixScores(), AttentionMap()})
    needs_causal_reward_model = True

    def __init__(self, *, layers: Layers = -1, heads: Heads = "mean") -> None:
        self.layers, self.heads = layers, heads
        self._map = AttentionMap(layers, heads)
        self.readouts = frozenset({PrefixScores(), self._map})

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`."""
        scores = scored[PrefixScores()]
        weights = scored[self._map] * scored.completion_mask[:, None, :]
        total = weights.sum(dim=2)  # (batch, num_tokens)
        mean = (weights * scores[:, None, :]).sum(dim=2)
        on_prompt = total <= torch.finfo(total.dtype).tiny
        mean = torch.where(on_prompt, scores, mean / total.masked_fill(on_prompt, 1))
        return (mean - _start_score(scored)).masked_fill(~scored.completion_mask, 0.0)


class FunctionPotential(Potential):
    """Any function of the state: Φ_t = f(prompt, completion up to t) - f(prompt, nothing).

    Cost: one call of the function per token, none of the reward model. Guarantee: Φ depends on the
    state alone if the function does.

    Args:
        function: Takes the token ids of the prompt and of the completion so far, int64 tensors of
            one axis, and returns a number.

    Raises:
        InvalidArgumentError: If ``function`` is none.

    Example:
        >>> from textgym.credit._example import five_tokens
        >>> longer = FunctionPotential(lambda prompt, completion: 0.1 * len(completion))
        >>> longer(five_tokens())[0, 2:]
        tensor([0.1000, 0.2000, 0.3000, 0.4000, 0.5000])
    """

    name = "function"
    reads_reward_model = False

    def __init__(self, function: StateFunction) -> None:
        if not callable(function):
            raise InvalidArgumentError("function", function, "pass a function")
        self.function = function
        self._starts: dict[tuple[int, ...], float] = {}

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`."""
        potential = torch.zeros(scored.input_ids.shape, device=scored.score.device)
        for row, ids in enumerate(scored.input_ids):
            prompt = ids[scored.prompt_mask[row]]
            columns = scored.completion_mask[row].nonzero()[:, 0]
            start = self._start(prompt)
            for count, column in enumerate(columns, start=1):
                value = float(self.function(prompt, ids[columns[:count]]))
                potential[row, column] = value - start
        return potential

    def newest(self, scored: ScoredCompletions) -> Tensor:
        """See :class:`Potential`; one call of the function, and one more for a new prompt."""
        values = []
        for row, ids in enumerate(scored.input_ids):
            prompt, completion = ids[scored.prompt_mask[row]], ids[scored.completion_mask[row]]
            start = self._start(prompt)
            is_start = len(completion) == 0
            values.append(0.0 if is_start else float(self.function(prompt, completion)) - start)
        return torch.tensor(values, device=scored.input_ids.device)

    def _start(self, prompt: Tensor) -> float:
        """Value of a prompt alone, kept, since every state of an episode is measured from it."""
        ids = tuple(prompt.tolist())
        if ids not in self._starts:
            if len(self._starts) >= _MOST_STARTS:
                self._starts.clear()
            self._starts[ids] = float(self.function(prompt, prompt[:0]))
        return self._starts[ids]
