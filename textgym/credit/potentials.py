"""Potentials: functions of the state that say how good the text is so far.

Paying the difference γΦ(s') - Φ(s) at every step leaves the optimal policies unchanged (Ng, Harada
& Russell, 1999), provided that Φ depends on the state alone and is 0 at the end of an episode
(Grześ, 2017). It need not be 0 at the start. What uses a potential decides that: see ``start`` in
:class:`textgym.credit.ShapingCredit`.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from textgym.checks import check_takes
from textgym.credit.checks import check_id
from textgym.credit.start import prompt_scores
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


StateFunction = Callable[[Tensor, Tensor], float]
"""Φ as a function of the token ids of the prompt and of the completion so far, both int64, 1-D."""

_MOST_PROMPTS = 4096  # whose value is kept; a prompt source may never draw the same prompt twice


class Potential(ABC):
    """Computes Φ for every state that a batch of completions passed through.

    Attributes:
        name: Its id.
        paper: Its source.
        readouts: What the reward model must read out; see :mod:`textgym.models.readouts`.
        needs_causal_reward_model: Whether the reward model must not look ahead of a token, because
            otherwise Φ would not depend on the state alone.
        reads_reward_model: Whether it uses anything from the reward model. A potential that looks
            only at the tokens saves the forward passes.
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
            scored: Completions with the read-outs that the potential needs. Rows without any
                generated token are allowed.

        Returns:
            Φ of the state that ends with each token, float32, shape (batch, num_tokens), 0 outside
            the completion. The value at the last token ignores that the episode may have ended
            there; the caller replaces it with 0 at the end of an episode.
        """

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential of the start states, the prompts alone.

        Args:
            scored: Completions with the read-outs that the potential needs.

        Returns:
            float32, shape (batch,); 0 unless a subclass says otherwise.
        """
        return torch.zeros(len(scored), device=scored.input_ids.device)

    def newest(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential of the current states only, the ones the texts end in.

        Args:
            scored: Completions with the read-outs that the potential needs.

        Returns:
            float32, shape (batch,): the value of :meth:`__call__` at each last token, that of
            :meth:`start_values` for rows without any generated token.
        """
        index = torch.arange(scored.input_ids.shape[1], device=scored.input_ids.device)
        last = torch.where(scored.attention_mask, index, 0).max(dim=1, keepdim=True).values
        is_start = ~scored.completion_mask.any(dim=1)
        return torch.where(is_start, self.start_values(scored), self(scored).gather(1, last)[:, 0])

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({arguments})"


POTENTIALS: dict[str, type[Potential]] = {}
"""The potentials by id, in the order of registration."""


def register_potential(potential: type[Potential]) -> type[Potential]:
    """Register a potential under its name; a class decorator.

    Args:
        potential: A subclass of :class:`Potential` whose constructor needs no argument.

    Returns:
        The class, unchanged.

    Raises:
        InvalidArgumentError: If the name is taken, or there is none.
    """
    POTENTIALS[check_id(potential, POTENTIALS)] = potential
    return potential


def get_potential(potential: str | Potential | StateFunction | None) -> Potential:
    """Build a potential from whatever the user passes.

    Args:
        potential: An id in :data:`POTENTIALS`; a potential, which is returned as it is; a function
            of the state (see :class:`FunctionPotential`); or None for the attention-weighted prefix
            score.

    Raises:
        InvalidArgumentError: If there is no such potential.

    Example:
        >>> from textgym.credit import get_potential
        >>> get_potential("prefix-score")
        PrefixScore()
    """
    if potential is None:
        return AttentionWeightedPrefixScore()
    if isinstance(potential, Potential):
        return potential
    if isinstance(potential, str) and potential in POTENTIALS:
        return POTENTIALS[potential]()
    if callable(potential) and not inspect.isclass(potential):
        return FunctionPotential(potential)
    raise InvalidArgumentError(
        "potential",
        potential,
        f"pass one of {', '.join(POTENTIALS)}, a textgym.credit.Potential (an instance, not the "
        "class), or a function of (prompt_ids, completion_ids)",
    )


@register_potential
class PrefixScore(Potential):
    """The reward model's score of the text so far: Φ_t = s_t.

    For a finished completion the differences of this potential are the credit of RED (Li et al.,
    2024, arXiv 2411.08302), s_t - s_{t-1}.

    Cost: no extra pass if the reward model is a decoder; one forward pass per prefix if it is an
    encoder. Guarantee: Φ depends only on the text so far.

    Example:
        >>> from textgym.credit import PrefixScore
        >>> from textgym.models import Completions, PrefixScores
        >>> prefix_scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> scored = completions.with_score([2.0], {PrefixScores(): [prefix_scores]})
        >>> PrefixScore()(scored)[0, 2:]
        tensor([0.5000, 1.5000, 1.0000, 1.0000, 2.0000])
        >>> PrefixScore().start_values(scored)
        tensor([0.5000])
    """

    name = "prefix-score"
    paper = "arXiv 2411.08302"
    readouts = frozenset({PrefixScores()})

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential after each token; see :class:`Potential`."""
        return scored[PrefixScores()].masked_fill(~scored.completion_mask, 0.0)

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """The score of each prompt alone, shape (batch,)."""
        return prompt_scores(scored)


@register_potential
class AttentionWeightedPrefixScore(Potential):
    """The attention-weighted mean of the prefix scores: Φ_t = Σ_{i≤t} α_i^(t) s_i.

    α^(t) is the attention row of token t, restricted to the completion and normalised. s_i is the
    score of the text that ends with token i. This is the causal form of Attention-Based Credit
    (Chan et al., 2024, arXiv 2402.00782). If a token pays all its attention to the prompt, there is
    nothing to normalise, and Φ uses the token's own prefix score. So the prompt alone has its score
    s_0.

    Cost: no extra pass, but the attention map of the layer is computed besides the fused kernel.
    Guarantee: Φ depends only on the text so far, if the reward model does not look ahead.

    Args:
        layers: The layer whose attention counts (-1 is the last), or a tuple of layers, whose mean
            is taken.
        heads: How the heads are reduced: "mean", "max", or the number of one head.

    Raises:
        InvalidArgumentError: If ``layers`` or ``heads`` is invalid.

    Example:
        Every token attends to itself and to the token before it, half each. The prompt does not
        count, so the first token of the completion attends to itself alone.

        >>> from textgym.credit import AttentionWeightedPrefixScore
        >>> from textgym.models import AttentionMap, Completions, PrefixScores
        >>> prefix_scores = [0.0, 0.5, 0.5, 1.5, 1.0, 1.0, 2.0]  # the prompt alone scores 0.5
        >>> rows = [[0.5 * (s - t in (0, 1)) for t in range(7)] for s in range(7)]
        >>> completions = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]])
        >>> readouts = {PrefixScores(): [prefix_scores], AttentionMap(): [rows]}
        >>> scored = completions.with_score([2.0], readouts)
        >>> AttentionWeightedPrefixScore()(scored)[0, 2:]
        tensor([0.5000, 1.0000, 1.2500, 1.0000, 1.5000])
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
        """Compute the potential after each token; see :class:`Potential`."""
        scores = scored[PrefixScores()]
        weights = scored[self._map] * scored.completion_mask[:, None, :]
        total = weights.sum(dim=2)  # (batch, num_tokens)
        mean = (weights * scores[:, None, :]).sum(dim=2)
        on_prompt = total <= torch.finfo(total.dtype).tiny
        mean = torch.where(on_prompt, scores, mean / total.masked_fill(on_prompt, 1))
        return mean.masked_fill(~scored.completion_mask, 0.0)

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """The score of each prompt alone, shape (batch,)."""
        return prompt_scores(scored)


class FunctionPotential(Potential):
    """Any function of the state: Φ_t = f(prompt, completion up to t).

    Cost: one call of the function per token and one per prompt, and no call of the reward model.
    Guarantee: Φ depends on the state alone if the function does.

    Args:
        function: Takes the token ids of the prompt and of the completion so far (two int64 tensors
            of one axis) and returns a number.

    Raises:
        InvalidArgumentError: If ``function`` is not a function of two arguments.

    Example:
        >>> from textgym.credit import FunctionPotential
        >>> from textgym.models import Completions
        >>> longer = FunctionPotential(lambda prompt, completion: 0.1 * len(completion))
        >>> scored = Completions.from_lists([[1, 2]], [[3, 4, 5, 6, 7]]).with_score([2.0])
        >>> longer(scored)[0, 2:]
        tensor([0.1000, 0.2000, 0.3000, 0.4000, 0.5000])
    """

    name = "function"
    reads_reward_model = False

    def __init__(self, function: StateFunction) -> None:
        if not callable(function) or inspect.isclass(function):
            raise InvalidArgumentError("function", function, "pass a function")
        remedy = "a potential takes the token ids of the prompt, and of the completion so far"
        check_takes("potential", function, remedy, None, None)
        self.function = function
        self._starts: dict[tuple[int, ...], float] = {}

    def __call__(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential after each token; see :class:`Potential`."""
        potential = torch.zeros(scored.input_ids.shape, device=scored.score.device)
        for row, ids in enumerate(scored.input_ids):
            prompt = ids[scored.prompt_mask[row]]
            columns = scored.completion_mask[row].nonzero()[:, 0]
            for count, column in enumerate(columns, start=1):
                potential[row, column] = self._call(prompt, ids[columns[:count]])
        return potential

    def start_values(self, scored: ScoredCompletions) -> Tensor:
        """The function of each prompt and nothing, shape (batch,)."""
        prompts = zip(scored.input_ids, scored.prompt_mask, strict=True)
        values = [self._start(ids[mask]) for ids, mask in prompts]
        return torch.tensor(values, device=scored.input_ids.device)

    def newest(self, scored: ScoredCompletions) -> Tensor:
        """Compute the potential of the current states, with one call each."""
        values = []
        for row, ids in enumerate(scored.input_ids):
            prompt, completion = ids[scored.prompt_mask[row]], ids[scored.completion_mask[row]]
            is_start = len(completion) == 0
            values.append(self._start(prompt) if is_start else self._call(prompt, completion))
        return torch.tensor(values, device=scored.input_ids.device)

    def _start(self, prompt: Tensor) -> float:
        """Value of the prompt alone, cached because every state of the episode needs it."""
        ids = tuple(prompt.tolist())
        if ids not in self._starts:
            if len(self._starts) >= _MOST_PROMPTS:
                self._starts.clear()
            self._starts[ids] = self._call(prompt, prompt[:0])
        return self._starts[ids]

    def _call(self, prompt: Tensor, completion: Tensor) -> float:
        """Φ of one state."""
        value = self.function(prompt, completion)
        try:
            phi = float(value)
        except (TypeError, ValueError, RuntimeError):  # None, texts, tensors of several numbers
            phi = math.nan
        if not math.isfinite(phi):
            raise InvalidArgumentError(
                "potential",
                value,
                f"{getattr(self.function, '__name__', 'the function')} returned it for the prompt "
                f"{prompt.tolist()} and the completion {completion.tolist()}; return a finite "
                "number",
            )
        return phi
