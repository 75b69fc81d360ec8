"""The controls carry no information about which token earned the score."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from textgym.credit import AttentionCredit, PositionCredit, RandomCredit, ShuffledAttentionCredit
from textgym.errors import InvalidArgumentError
from textgym.models import AttentionRow, Completions
from textgym.models.profile import mean_profile, stretch_profile


def many(length, size=4000):
    """Texts of the same length with different ids and the same attention row."""
    ids = torch.arange(size)[:, None] * 7 + torch.arange(length)
    batch = Completions.from_lists([[1]] * size, (ids + 2).tolist())
    row = torch.arange(length + 1, dtype=torch.float32).repeat(size, 1)
    row = row / row.sum(1, keepdim=True)
    return batch.with_score(torch.ones(size), {AttentionRow(): row})


@pytest.mark.parametrize("concentration", [0.5, 1.0, 5.0])
def test_random_shares_have_the_moments_of_the_dirichlet_distribution(concentration):
    """Mean 1/T and variance (T-1) / (T²(Tc+1)) at every position."""
    credit = RandomCredit(1.0, concentration=concentration)(many(4))[:, 1:]
    np.testing.assert_allclose(credit.mean(0), 0.25, atol=0.02)
    variance = 3 / (16 * (4 * concentration + 1))
    np.testing.assert_allclose(credit[:, :3].var(0), variance, rtol=0.12)


def test_shuffling_keeps_the_shares_and_forgets_the_places():
    scored = many(4)
    attention = AttentionCredit(1.0)(scored)[:, 1:]
    shuffled = ShuffledAttentionCredit(1.0)(scored)[:, 1:]
    torch.testing.assert_close(shuffled.sort(1).values, attention.sort(1).values)
    np.testing.assert_allclose(shuffled.mean(0), 0.25, atol=0.01)


def test_the_draws_of_a_seed_stay_what_they_were():
    """Written down, so that benchmarks can be repeated."""
    expected = [0.41166478, 0.52485698, 0.02080454, 0.04267370]
    credit = RandomCredit(1.0, seed=3)(many(4, size=1))[0, 1:]
    np.testing.assert_allclose(credit, expected, rtol=1e-5)


@pytest.mark.parametrize("control", [RandomCredit, ShuffledAttentionCredit])
def test_a_text_keeps_its_draw_and_a_seed_changes_it(control):
    scored = many(5, size=8)
    torch.testing.assert_close(control()(scored), control()(scored))
    alone = control()(scored.select(slice(3, 4)))
    torch.testing.assert_close(alone[0], control()(scored)[3])
    assert (control(seed=1)(scored) - control()(scored)).abs().max() > 1e-3


def test_a_profile_is_the_mean_of_the_normalised_rows():
    """[1, 3] gives [¼, ¾] and [2, 0, 0, 2] gives [½, ½] in two parts."""
    weights = torch.tensor([[9.0, 1.0, 3.0, 0.0, 0.0], [9.0, 2.0, 0.0, 0.0, 2.0]])
    mask = torch.tensor([[False, True, True, False, False], [False, True, True, True, True]])
    np.testing.assert_allclose(mean_profile(weights, mask, 2), [0.375, 0.625])


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 8, 40])
def test_stretching_keeps_the_sum_and_the_halves(num_tokens):
    stretched = stretch_profile([0.1, 0.2, 0.3, 0.4], num_tokens)
    assert stretched.sum().item() == pytest.approx(1)
    if num_tokens % 2 == 0:
        assert stretched[: num_tokens // 2].sum().item() == pytest.approx(0.3)


def test_a_fitted_position_gives_the_attention_where_all_texts_are_alike():
    scored = many(4, size=10)
    profile = mean_profile(scored[AttentionRow()], scored.completion_mask, num_bins=4)
    credit = PositionCredit(0.7, profile=profile)(scored)
    torch.testing.assert_close(credit, AttentionCredit(0.7)(scored), atol=1e-6, rtol=0)


def test_the_reward_models_own_profile_is_the_default():
    class Ships:
        attention_profile = (0.25, 0.75)

    scored = dataclasses.replace(many(4, size=1), reward_model=Ships())
    credit = PositionCredit(1.0)(scored)[0, 1:]
    torch.testing.assert_close(credit, torch.tensor([0.125, 0.125, 0.375, 0.375]))
    with pytest.raises(InvalidArgumentError, match="mean_profile"):
        PositionCredit()(dataclasses.replace(scored, reward_model=None))
