"""Shapley credit: the mean marginal contribution of each token over the orders of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import comb
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgym.checks import check_whole_number
from textgym.credit.base import HindsightCredit, steps_to_go
from textgym.credit.perturbation import score_subsets
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError
from textgym.models import ScoredCompletions

__all__ = [
    "ShapleyCredit",
    "Spans",
    "all_subsets",
    "antithetic_permutations",
    "prefix_subsets",
    "shapley_from_permutations",
    "shapley_from_subsets",
]

Spans = int | Callable[[list[int]], Sequence[int]]
"""A number of tokens per span, or a function from a completion's token ids to the span number of
each token."""

_LARGEST_EXACT = 16  # 65,536 texts per completion.


def all_subsets(num_players: int) -> Tensor:
    """List every subset of the players: player i is in subset n if bit i of n is set.

    Returns:
        bool, shape (2**num_players, num_players).

    >>> all_subsets(2).int().tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    numbers = torch.arange(2**num_players)[:, None]
    return (numbers >> torch.arange(num_players)) & 1 == 1


def shapley_from_subsets(values: Tensor) -> Tensor:
    """Compute exact Shapley values from the value of every subset of players.

    φ_i = Σ_{S not containing i} |S|! (n-|S|-1)! / n! · (v(S ∪ {i}) - v(S)) (Shapley, 1953).

    Args:
        values: v of each subset in the order of :func:`all_subsets`, shape (..., 2**num_players).

    Returns:
        Shape (..., num_players).

    Raises:
        InvalidArgumentError: If the number of values is not 2, 4, 8, ...

    Two players are worth 1 each alone and 4 together. They share equally:

    >>> shapley_from_subsets(torch.tensor([0.0, 1.0, 1.0, 4.0])).tolist()
    [2.0, 2.0]
    """
    num_subsets = values.shape[-1]
    num_players = num_subsets.bit_length() - 1
    if num_players < 1 or num_subsets != 2**num_players:
        raise InvalidArgumentError(
            "values", tuple(values.shape), "the last dimension must be 2, 4, 8, ...: all subsets"
        )
    number = torch.arange(num_subsets, device=values.device)
    size = all_subsets(num_players).sum(1).to(values.device)
    # |S|! (n-|S|-1)! / n! by the size of S.
    weight = torch.tensor(
        [1 / (num_players * comb(num_players - 1, s)) for s in range(num_players)]
    )
    weight = weight.to(values)
    shares = []
    for player in range(num_players):
        without = number[(number >> player) & 1 == 0]
        gain = values[..., without | 1 << player] - values[..., without]
        shares.append((weight[size[without]] * gain).sum(-1))
    return torch.stack(shares, dim=-1)


def antithetic_permutations(num_permutations: int, num_players: int, seed: int) -> Tensor:
    """Draw random orders of the players, each followed by its reverse.

    A player who comes early in one order comes late in the other, so much of the sampling error
    cancels within a pair.

    Args:
        num_permutations: Number of orders, even.
        num_players: Number of players.
        seed: Seed of the draw. The same three numbers always give the same orders.

    Returns:
        int64, shape (num_permutations, num_players).
    """
    generator = torch.Generator().manual_seed(seed)
    forward = torch.rand(num_permutations // 2, num_players, generator=generator).argsort(1)
    return torch.stack([forward, forward.flip(1)], dim=1).flatten(0, 1)


def prefix_subsets(permutations: Tensor) -> Tensor:
    """List the players who are present after 0, 1, ..., n arrivals.

    Args:
        permutations: Shape (num_permutations, num_players), int64.

    Returns:
        bool, shape (num_permutations, num_players + 1, num_players).

    >>> prefix_subsets(torch.tensor([[1, 0]])).int().tolist()
    [[[0, 0], [0, 1], [1, 1]]]
    """
    arrival = permutations.argsort(1)
    moments = torch.arange(permutations.shape[1] + 1, device=permutations.device)
    return arrival[:, None, :] < moments[:, None]


def shapley_from_permutations(values: Tensor, permutations: Tensor) -> Tensor:
    """Average the marginal contribution of each player over some orders of arrival.

    Over all orders the mean is the Shapley value. Over random orders it is an unbiased estimate
    (Castro et al., 2009). Its sum is exact either way, because the contributions along each order
    telescope.

    Args:
        values: v of the subsets of :func:`prefix_subsets`, shape
            (..., num_permutations, num_players + 1).
        permutations: Shape (num_permutations, num_players), int64.

    Returns:
        Shape (..., num_players).

    >>> orders = torch.tensor([[0, 1], [1, 0]])
    >>> shapley_from_permutations(torch.tensor([[0.0, 1.0, 4.0], [0.0, 1.0, 4.0]]), orders).tolist()
    [2.0, 2.0]
    """
    marginal = values.diff(dim=-1)  # in the order of arrival
    arrival = permutations.argsort(1).to(values.device)
    return marginal.gather(-1, arrival.expand(marginal.shape)).mean(-2)


@register_credit_assigner
class ShapleyCredit(HindsightCredit):
    """Shapley values of tokens, or of spans of tokens, in the game whose payoff is the score.

    attribution_t is token t's marginal contribution v(S ∪ {t}) - v(S), averaged over all orders in
    which the tokens may arrive. v(S) is the reward model's score of the prompt with only the
    completion tokens in S; the others are deleted (Shapley, 1953; for language models: SCAR, Cao
    et al., 2025, arXiv 2505.20417). Up to ``exact_up_to`` players, every subset is scored. Beyond
    that, random orders are sampled in pairs of an order and its reverse (antithetic sampling;
    Mitchell et al., 2022, arXiv 2104.12199). Note that the reward model never saw texts with holes
    in training.

    Cost: 2**n texts for n players up to ``exact_up_to``; beyond that at most
    num_permutations · (n - 1) + 2. A subset that occurs twice is scored once.

    Guarantee: at γ = 1 every completion keeps its return. The attributions sum to the reward
    model's score minus its score of the prompt alone, even when orders are sampled. Exact values
    also give nothing to a token that never matters, and the same to interchangeable tokens. The
    credit of a completion depends only on the completion and the arguments, not on the rest of the
    batch or on earlier calls. Completions with the same number of players share their orders of
    arrival.

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        num_permutations: Number of sampled orders of arrival, even and at least 2.
        exact_up_to: Largest number of players for which every subset is scored, at most 16.
        spans: Who the players are. None: the tokens. A whole number n: every n consecutive tokens
            are one player, and the last player may be shorter. A function: it takes a completion's
            token ids (a list) and returns the span number of each token; tokens with the same
            number are one player. The tokens of a span share its value equally.
        seed: Seed of the sampled orders, a whole number of at least 0.
        max_rows: Largest number of texts in one forward pass.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range, or ``spans`` does not return one
            whole number per token.

    Example:
        The planted reward model scores "not very bad" with 2, "very bad" with -2, "not bad" with
        1, "bad" with -1, and texts without "bad" with 0. The values are 5/3, 1/6 and 1/6.

        >>> from textgym.credit import ShapleyCredit
        >>> from textgym.models import Completions, load_reward_model
        >>> from textgym.planted import encode
        >>> reward_model = load_reward_model("planted")
        >>> prompt_ids = encode("the film was")
        >>> completion_ids = encode("not very bad")[1:]  # without the start token
        >>> scored = reward_model.read(Completions.from_lists([prompt_ids], [completion_ids]))
        >>> ShapleyCredit(beta=1.0)(scored)[0, 4:].round(decimals=2)
        tensor([1.6700, 0.1700, 0.1700])

        In spans of two tokens the players are "not very", worth (0 + 3)/2 in all, and "bad".

        >>> ShapleyCredit(beta=1.0, spans=2)(scored)[0, 4:].round(decimals=2)
        tensor([0.7500, 0.7500, 0.5000])
    """

    name = "shapley"
    label = "Shapley values"
    paper = "arXiv 2505.20417"
    signed = True
    sums_to = "score - prompt score"
    cost = "2^T forward passes; if T > 8 at most 16 (T - 1) + 2"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        num_permutations: int = 16,
        exact_up_to: int = 8,
        spans: Spans | None = None,
        seed: int = 0,
        max_rows: int = 512,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        self.num_permutations = check_whole_number("num_permutations", num_permutations, 2)
        if num_permutations % 2:
            raise InvalidArgumentError(
                "num_permutations", num_permutations, "must be even: orders come in pairs"
            )
        self.exact_up_to = check_whole_number("exact_up_to", exact_up_to, 0, _LARGEST_EXACT)
        self.seed = check_whole_number("seed", seed, 0, 2**63 - 1)
        self.max_rows = check_whole_number("max_rows", max_rows, 1)
        self.spans = spans
        if spans is not None and not callable(spans):
            check_whole_number("spans", spans, 1)

    def forward_passes(self, num_tokens: int) -> int:
        """Number of distinct subsets to score; an upper bound if ``spans`` is a function."""
        if callable(self.spans):
            exact = 2 ** min(num_tokens, self.exact_up_to)
            is_sampled = num_tokens > self.exact_up_to
            return max(exact, is_sampled * (self.num_permutations * (num_tokens - 1) + 2))
        num_players = -(-num_tokens // (self.spans or 1))
        return len(self._subsets(num_players).unique(dim=0))

    def _permutations(self, num_players: int) -> Tensor:
        return antithetic_permutations(self.num_permutations, num_players, self.seed)

    def _subsets(self, num_players: int) -> Tensor:
        """The subsets to score, bool, shape (num_subsets, num_players)."""
        if num_players <= self.exact_up_to:
            return all_subsets(num_players)
        return prefix_subsets(self._permutations(num_players)).flatten(0, 1)

    def _values(self, scores: Tensor, num_players: int) -> Tensor:
        """The players' values, shape (num_players,), from the scores of the subsets."""
        if num_players <= self.exact_up_to:
            return shapley_from_subsets(scores)
        permutations = self._permutations(num_players)
        return shapley_from_permutations(scores.unflatten(0, (-1, num_players + 1)), permutations)

    def _players(self, completion_ids: Tensor) -> Tensor:
        """The player each token belongs to, 0 to num_players - 1, int64, shape (length,)."""
        length = len(completion_ids)
        if not callable(self.spans):
            return torch.arange(length) // (self.spans or 1)
        answer = self.spans(completion_ids.tolist())
        span = list(answer) if isinstance(answer, Iterable) else []
        if len(span) != length or not all(isinstance(number, Integral) for number in span):
            raise InvalidArgumentError(
                "spans", answer, f"the function must return {length} whole numbers, one per token"
            )
        return torch.tensor(span).unique(return_inverse=True)[1]

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """Shapley values, split equally among the tokens of a span, shape (batch, num_tokens)."""
        steps_to_go(scored.completion_mask)  # refuses empty completions: no players, no game
        masks = scored.completion_mask.cpu()
        players = [
            self._players(ids[mask])
            for ids, mask in zip(scored.input_ids.cpu(), masks, strict=True)
        ]
        keep = []
        for player, mask in zip(players, masks, strict=True):
            subsets = self._subsets(int(player.max()) + 1)
            tokens = torch.ones(len(subsets), len(mask), dtype=torch.bool)
            tokens[:, mask] = subsets[:, player]
            keep.append(tokens)  # (num_subsets, num_tokens)
        # Rows with fewer subsets are filled up with the whole text, which is scored anyway.
        padded = pad_sequence(keep, batch_first=True, padding_value=True)
        scores = score_subsets(scored, padded, self.max_rows).cpu().double()
        result = torch.zeros(masks.shape, dtype=torch.float64)
        for row, player in enumerate(players):
            size = player.bincount()
            values = self._values(scores[row, : len(keep[row])], len(size))
            result[row, masks[row]] = (values / size)[player]
        return result.float().to(scored.input_ids.device)
