from __future__ import annotations

import warnings

import pytest
import torch

from textgym.agents.mismatch import (
    MAX_SAMPLER_GAP,
    MAX_SAMPLER_KL,
    find_mismatch,
    mismatch,
    sound_mismatch,
)

APART = {"rollout/sampler_kl": 0.5, "rollout/sampler_gap": 0.3}
CLOSE = {"rollout/sampler_kl": 0.0001, "rollout/sampler_gap": 0.01}


def test_the_estimate_of_the_kl_is_that_from_the_sampler_to_the_policy() -> None:
    """Each action as often as the sampler chooses it: then the mean over tokens is exact."""
    mu, pi = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    actions = torch.tensor([[0] * 5 + [1] * 3 + [2] * 2])
    mask = torch.ones_like(actions, dtype=torch.bool)
    measured = mismatch(pi.log()[actions], mu.log()[actions], mask)
    kl = (mu * (mu / pi).log()).sum().item()
    assert measured["rollout/sampler_kl"] == pytest.approx(kl, rel=1e-5)
    gap = (mu * (mu / pi).log().abs()).sum().item()
    assert measured["rollout/sampler_gap"] == pytest.approx(gap, rel=1e-5)


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[True, False]])
    measured = mismatch(torch.tensor([[-1.0, 0.0]]), torch.tensor([[-1.0, -7.0]]), mask)
    assert measured == {"rollout/sampler_kl": 0.0, "rollout/sampler_gap": 0.0}


def test_a_cut_off_tail_shows_in_the_gap_where_the_estimate_of_the_kl_misses_it() -> None:
    """With top-p 0.92, every token that is sampled seems more probable by a factor of 1/0.92."""
    logprobs = torch.full((1, 10), -2.0)
    measured = mismatch(
        logprobs, logprobs - torch.tensor(0.92).log(), torch.ones(1, 10, dtype=torch.bool)
    )
    assert measured["rollout/sampler_kl"] < MAX_SAMPLER_KL
    assert measured["rollout/sampler_gap"] > MAX_SAMPLER_GAP
    assert find_mismatch(measured) is not None


@pytest.mark.parametrize("name", ["rollout/sampler_kl", "rollout/sampler_gap"])
def test_either_figure_is_enough(name) -> None:
    assert find_mismatch(CLOSE) is None
    assert find_mismatch(CLOSE | {name: APART[name]}) is not None


def test_the_warning_has_the_figures_and_the_likely_causes() -> None:
    with pytest.warns(RuntimeWarning, match=r"iteration 1: .*0\.3 nats .* KL of 0\.5") as record:
        assert sound_mismatch(APART, [])
    message = str(record[0].message)
    for cause in ("weights of an earlier iteration", "temperature", "top-k", "dtype"):
        assert cause in message


def test_it_comes_once_per_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sound_mismatch(APART, [{"rollout/sampler_alarm": 1.0}])
        assert not sound_mismatch(CLOSE, [])
    with pytest.warns(RuntimeWarning):
        sound_mismatch(APART, [{"rollout/sampler_alarm": 0.0}])
