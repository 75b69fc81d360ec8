"""Shapley values, against the definition over all orders of arrival and against the axioms."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import pytest
import torch

from tests.credit.additive import AdditiveRewardModel
from textgym.credit.shapley import (
    ShapleyCredit,
    all_subsets,
    antithetic_permutations,
    prefix_subsets,
    shapley_from_permutations,
    shapley_from_subsets,
)
from textgym.errors import InvalidArgumentError
from textgym.models import Completions

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def by_definition(value, num_players):
    """Mean marginal contribution over all orders of arrival, by plain loops.

    Args:
        value: A function from a frozenset of players to a number.
        num_players: How many players.
    """
    orders = list(permutations(range(num_players)))
    shares = [0.0] * num_players
    for order in orders:
        present = frozenset()
        for player in order:
            shares[player] += (value(present | {player}) - value(present)) / len(orders)
            present = present | {player}
    return torch.tensor(shares, dtype=torch.float64)


def random_game(num_players, seed):
    """The values of all subsets, as a float64 tensor and as a function of a set."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2**num_players, generator=generator, dtype=torch.float64)
    return values, lambda players: values[sum(1 << player for player in players)].item()


@pytest.mark.parametrize("num_players", [1, 2, 3, 4, 5])
def test_exact_values_are_those_of_the_definition(num_players):
    values, value = random_game(num_players, seed=num_players)
    torch.testing.assert_close(shapley_from_subsets(values), by_definition(value, num_players))


def test_values_sum_to_what_all_achieve_together():
    values, _ = random_game(7, seed=0)
    torch.testing.assert_close(shapley_from_subsets(values).sum(), values[-1] - values[0])


def test_interchangeable_players_share_alike_and_idle_ones_get_nothing():
    """Players 0 and 2 are interchangeable; player 1 never matters."""
    subsets = all_subsets(4)
    size = subsets[:, [0, 2]].sum(1)
    values = torch.tensor([0.0, 1.5, -2.0])[size] + size * subsets[:, 3]
    shares = shapley_from_subsets(values)
    assert shares[0] == pytest.approx(shares[2])
    assert shares[1] == pytest.approx(0)
    assert shares[3] == pytest.approx(1)


def test_the_values_of_a_sum_of_games_are_the_sums():
    games = torch.stack([random_game(4, seed)[0] for seed in (1, 2)])
    separate = shapley_from_subsets(games)  # a batch of games
    torch.testing.assert_close(shapley_from_subsets(games.sum(0)), separate.sum(0))


def values_along(orders, values):
    bits = 2 ** torch.arange(orders.shape[1])
    return values[(prefix_subsets(orders) * bits).sum(-1)]


def test_all_orders_give_the_exact_values():
    values, value = random_game(4, seed=3)
    orders = torch.tensor(list(permutations(range(4))))
    estimate = shapley_from_permutations(values_along(orders, values), orders)
    torch.testing.assert_close(estimate, by_definition(value, 4))


def test_more_orders_come_closer_and_any_number_sums_exactly():
    values, _ = random_game(6, seed=4)
    exact = shapley_from_subsets(values)
    errors = []
    for num_permutations in (2, 64, 4096):
        squares = []
        for seed in range(8):
            orders = antithetic_permutations(num_permutations, 6, seed)
            estimate = shapley_from_permutations(values_along(orders, values), orders)
            torch.testing.assert_close(estimate.sum(), values[-1] - values[0])
            squares.append((estimate - exact).square().mean())
        errors.append(torch.stack(squares).mean().sqrt())
    # A standard error falls with the square root of their number, here √32 = 5.7 and 8 times.
    assert errors[0] > 3 * errors[1] > 12 * errors[2]


def test_orders_come_in_pairs_of_opposites():
    orders = antithetic_permutations(10, 7, seed=0)
    assert orders.sort(1).values.eq(torch.arange(7)).all()
    assert torch.equal(orders[0::2], orders[1::2].flip(1))
    assert len(orders.unique(dim=0)) == 10
    assert not torch.equal(orders, antithetic_permutations(10, 7, seed=1))


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_every_token_of_a_sum_gets_what_it_is_worth(exact_up_to):
    worth = torch.tensor([0.0, 3.0, 0.5, -1.0, 2.0, 0.25])
    batch = Completions.from_lists([[1, 2], [3]], [[2, 3, 4, 4], [5]])
    shapley = ShapleyCredit(num_permutations=2, exact_up_to=exact_up_to)
    attributions = shapley.attributions(AdditiveRewardModel(worth).read(batch))
    torch.testing.assert_close(attributions, worth[batch.input_ids] * batch.completion_mask)


PROMPT, COMPLETION = [1, 40], [50, 60, 50, 2]


def score_game(reward_model, spans):
    """The score as a function of the spans that are present; ``spans`` numbers each token."""

    def value(players):
        kept = [token for token, span in zip(COMPLETION, spans, strict=True) if span in players]
        return reward_model.read(Completions.from_lists([PROMPT], [kept])).score.item()

    return value


@pytest.fixture
def scored(reward_model):
    return reward_model.read(Completions.from_lists([PROMPT], [COMPLETION]))


def test_the_game_is_the_score_of_the_tokens_that_are_there(reward_model, scored):
    expected = by_definition(score_game(reward_model, [0, 1, 2, 3]), 4)
    attributions = ShapleyCredit().attributions(scored)[0, 2:]
    torch.testing.assert_close(attributions.double(), expected, **CLOSE)
    assert attributions.abs().min() > 1e-3


def test_sampled_credit_comes_close_to_exact_credit(scored):
    exact = ShapleyCredit().attributions(scored)
    sampled = ShapleyCredit(num_permutations=2000, exact_up_to=0).attributions(scored)
    torch.testing.assert_close(sampled, exact, atol=0.05 * exact.abs().max().item(), rtol=0)
    assert not torch.allclose(sampled, exact, **CLOSE)


@pytest.mark.parametrize(
    ("spans", "groups"),
    [(2, [0, 0, 1, 1]), (3, [0, 0, 0, 1]), (9, [0, 0, 0, 0]), (lambda ids: ids, [0, 1, 0, 2])],
    ids=["pairs", "a shorter last span", "one span", "a function of the token ids"],
)
def test_a_span_is_one_player_and_its_tokens_share_equally(reward_model, scored, spans, groups):
    num_players = max(groups) + 1
    values = by_definition(score_game(reward_model, groups), num_players)
    expected = [values[group] / groups.count(group) for group in groups]
    attributions = ShapleyCredit(spans=spans).attributions(scored)[0, 2:]
    torch.testing.assert_close(attributions.double(), torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_attributions_sum_to_the_score_minus_that_of_the_prompt(reward_model, ragged, exact_up_to):
    scored = reward_model.read(ragged)
    bare = dataclasses.replace(ragged, attention_mask=ragged.prompt_mask)
    expected = scored.score - reward_model.read(bare).score
    shapley = ShapleyCredit(num_permutations=2, exact_up_to=exact_up_to)
    torch.testing.assert_close(shapley.attributions(scored).sum(1), expected, **CLOSE)
    assert expected.abs().min() > 1e-3


@pytest.mark.parametrize(
    "arguments",
    [{}, {"exact_up_to": 3}, {"exact_up_to": 0, "num_permutations": 6}, {"spans": 2}],
)
def test_declared_passes_are_the_texts_that_are_scored(reward_model, ragged, passes, arguments):
    scored = reward_model.read(ragged)
    passes.forward = 0
    shapley = ShapleyCredit(**arguments)
    shapley(scored)
    lengths = ragged.completion_mask.sum(1).tolist()
    assert passes.forward == sum(shapley.forward_passes(length) for length in lengths)
    assert passes.backward == shapley.backward_passes(5) == 0


def test_the_cost_of_exact_and_sampled_values():
    assert ShapleyCredit().forward_passes(8) == 2**8
    many = ShapleyCredit(num_permutations=4).forward_passes(40)
    assert 4 * 35 < many <= 4 * 39 + 2
    assert ShapleyCredit(spans=10).forward_passes(75) == 2**8


def test_the_declared_cost_of_spans_by_a_function_is_an_upper_bound(reward_model, ragged, passes):
    scored = reward_model.read(ragged)
    for spans in (lambda ids: ids, lambda ids: [0] * len(ids)):
        passes.forward = 0
        shapley = ShapleyCredit(spans=spans, exact_up_to=3, num_permutations=2)
        shapley(scored)
        bound = sum(shapley.forward_passes(length) for length in (3, 1, 5))
        assert 0 < passes.forward <= bound == 8 + 2 + 10


@pytest.mark.parametrize("exact_up_to", [8, 3, 0])
def test_padding_batch_size_and_order_change_nothing(
    reward_model, ragged, ragged_left, exact_up_to
):
    shapley = ShapleyCredit(num_permutations=2, exact_up_to=exact_up_to, gamma=0.9)
    credit = shapley(reward_model.read(ragged))
    torch.testing.assert_close(shapley(reward_model.read(ragged_left))[:, 2:], credit, **CLOSE)
    for row in (2, 0, 1):
        alone = shapley(reward_model.read(ragged.select(slice(row, row + 1))))
        torch.testing.assert_close(alone[0], credit[row], **CLOSE)


def test_the_seed_decides_the_orders(reward_model, ragged):
    scored = reward_model.read(ragged)
    first, again, other = (
        ShapleyCredit(num_permutations=2, exact_up_to=0, seed=seed)(scored)[2] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, **CLOSE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_permutations": 0},
        {"num_permutations": 3},
        {"exact_up_to": 17},
        {"exact_up_to": True},
        {"spans": 0},
        {"spans": "words"},
        {"seed": -1},
        {"max_rows": 0},
        {"gamma": 0.0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        ShapleyCredit(**arguments)


@pytest.mark.parametrize(
    "spans", [lambda ids: ids[1:], lambda ids: [0.5] * len(ids), len, lambda ids: None]
)
def test_spans_that_do_not_number_each_token_are_refused(scored, spans):
    with pytest.raises(InvalidArgumentError, match="4 whole numbers"):
        ShapleyCredit(spans=spans)(scored)


@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_values_that_are_not_those_of_all_subsets_are_refused(size):
    with pytest.raises(InvalidArgumentError, match="all subsets"):
        shapley_from_subsets(torch.zeros(size))


def test_an_empty_completion_is_refused(reward_model):
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        ShapleyCredit()(reward_model.read(Completions.from_lists([[1, 2]], [[]])))
