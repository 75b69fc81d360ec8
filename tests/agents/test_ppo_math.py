from __future__ import annotations

import pytest
import torch

from textgym.agents.ppo import gae, policy_loss, value_loss

LENGTHS = [5, 1, 3]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def ragged(seed: int) -> torch.Tensor:
    """Numbers inside the mask, rubbish outside."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.masked_fill(~MASK, 1e6)


def naive_advantage(rewards: list[float], values: list[float], t: int, g: float, lam: float):
    """The definition: the λ-weighted mean of the n-step advantages (GAE paper, equation 16)."""
    horizon = len(rewards) - t
    n_step = []
    for n in range(1, horizon + 1):
        total = sum(g**k * rewards[t + k] for k in range(n))
        bootstrap = g**n * values[t + n] if t + n < len(values) else 0.0
        n_step.append(total + bootstrap - values[t])
    # (1 − λ) Σ λ^(n−1) A^(n) with all weight beyond the end on the complete return.
    weighted = [(1 - lam) * lam ** (n - 1) * a for n, a in enumerate(n_step, start=1)]
    return sum(weighted[:-1]) + lam ** (horizon - 1) * n_step[-1]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.5, 0.0])
def test_gae_equals_the_definition(gamma: float, gae_lambda: float) -> None:
    rewards, values = ragged(0), ragged(1)
    advantages, returns = gae(rewards, values, MASK, gamma, gae_lambda)
    for row, length in enumerate(LENGTHS):
        row_rewards, row_values = rewards[row, :length].tolist(), values[row, :length].tolist()
        for t in range(length):
            expected = naive_advantage(row_rewards, row_values, t, gamma, gae_lambda)
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(expected + row_values[t], abs=1e-12)
    assert (advantages[~MASK] == 0).all()
    assert (returns[~MASK] == 0).all()


def test_gae_with_lambda_one_is_monte_carlo() -> None:
    rewards, values = ragged(0), ragged(1)
    _, returns = gae(rewards, values, MASK, gamma=0.9, gae_lambda=1.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            reward_to_go = sum(0.9 ** (k - t) * rewards[row, k].item() for k in range(t, length))
            assert returns[row, t].item() == pytest.approx(reward_to_go)


def test_gae_does_not_leak_from_one_episode_into_another() -> None:
    rewards, values = ragged(0), ragged(1)
    together, _ = gae(rewards, values, MASK, 0.9, 0.95)
    alone, _ = gae(rewards[2:, :3], values[2:, :3], MASK[2:, :3], 0.9, 0.95)
    torch.testing.assert_close(together[2:, :3], alone)


def test_policy_loss_by_hand() -> None:
    # Ratios 1.5 and 0.5 against a clip of 0.2, advantages of both signs, one masked entry.
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 9.0]])
    advantages = torch.tensor([[1.0, -2.0, 1.0, -2.0, 9.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    loss = policy_loss(ratios.log(), torch.zeros(1, 5), advantages, mask, clip_coef=0.2)
    # min(A·r, A·clip(r)): 1·1.2, −2·1.5, 1·0.5, −2·0.8
    assert loss.item() == pytest.approx(-(1.2 - 3.0 + 0.5 - 1.6) / 4)


def test_policy_loss_stops_pushing_where_it_is_clipped() -> None:
    logprobs = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    policy_loss(logprobs, torch.zeros(1, 4), advantages, mask, clip_coef=0.2).backward()
    assert (logprobs.grad[0] != 0).tolist() == [False, True, True, False]


def test_policy_gradient_at_the_old_policy_is_reinforce() -> None:
    logprobs = torch.full((1, 3), -1.0, requires_grad=True)
    advantages, mask = torch.tensor([[1.0, -2.0, 5.0]]), torch.tensor([[True, True, False]])
    policy_loss(logprobs, logprobs.detach(), advantages, mask, clip_coef=0.2).backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, 1.0, 0.0]]))


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[1.0, 0.1, 7.0]])
    old_values, returns = torch.zeros(1, 3), torch.tensor([[2.0, 2.0, 2.0]])
    mask = torch.tensor([[True, True, False]])
    plain = value_loss(values, old_values, returns, mask, vf_clip_coef=None)
    assert plain.item() == pytest.approx(0.5 * (1.0**2 + 1.9**2) / 2)
    clipped = value_loss(values, old_values, returns, mask, vf_clip_coef=0.2)
    assert clipped.item() == pytest.approx(0.5 * (1.8**2 + 1.9**2) / 2)


def test_value_loss_stops_pushing_where_it_is_clipped() -> None:
    # Beyond the clip towards the target; beyond it away from the target; within it.
    values = torch.tensor([[1.0, -1.0, 0.1]], requires_grad=True)
    returns, mask = torch.full((1, 3), 2.0), torch.ones(1, 3, dtype=torch.bool)
    value_loss(values, torch.zeros(1, 3), returns, mask, vf_clip_coef=0.2).backward()
    assert (values.grad[0] != 0).tolist() == [False, True, True]
