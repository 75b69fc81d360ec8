from __future__ import annotations

import copy
import math

import pytest
import torch

from textgym.agents import GRPO, GRPOConfig, groups
from textgym.agents.grpo import (
    group_relative_advantages,
    group_relative_token_advantages,
    grpo_loss,
)
from textgym.agents.kl import kl_estimate
from textgym.agents.losses import completion_mean
from textgym.errors import InvalidArgumentError

LENGTHS = [4, 1, 3]
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Advantages


@pytest.mark.parametrize("normalize_std", [True, False])
def test_advantages_equal_a_plain_loop(normalize_std: bool) -> None:
    returns = numbers(0, 12)
    advantages = group_relative_advantages(returns, 4, normalize_std)
    for first in (0, 4, 8):
        group = returns[first : first + 4].tolist()
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 4)
        for i, r in enumerate(group):
            expected = (r - mean) / (std if normalize_std else 1)
            assert advantages[first + i].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_token_advantages_equal_a_plain_loop(normalize_std: bool) -> None:
    mask = torch.arange(4) < torch.tensor([4, 1, 3, 2])[:, None]
    credit = numbers(3, 4, 4).masked_fill(~mask, 1e6)
    advantages = group_relative_token_advantages(credit, mask, 2, normalize_std)
    for row in range(4):
        members = [row - row % 2, row - row % 2 + 1]
        to_go = {i: [credit[i, t : mask[i].sum()].sum().item() for t in range(4)] for i in members}
        returns = torch.tensor([to_go[i][0] for i in members])
        std = returns.std(correction=0).item() if normalize_std else 1.0
        for t in range(int(mask[row].sum())):
            others = [to_go[i][min(t, int(mask[i].sum()) - 1)] for i in members]
            expected = (to_go[row][t] - sum(others) / 2) / std
            assert advantages[row, t].item() == pytest.approx(expected, rel=1e-3)
    assert (advantages[~mask] == 0).all()


def test_advantages_of_a_group_sum_to_zero() -> None:
    advantages = group_relative_advantages(numbers(0, 12), 4).view(3, 4)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(3).double())
    torch.testing.assert_close(
        advantages.square().mean(1), torch.ones(3).double(), atol=1e-3, rtol=0
    )


def test_a_group_that_differs_by_rounding_alone_teaches_nothing() -> None:
    returns = torch.full((4,), 0.3) + torch.tensor([0.0, 1e-7, 0.0, -1e-7])
    assert group_relative_advantages(returns, 4).abs().max() < 1e-2
    assert (group_relative_advantages(torch.full((4,), 0.3), 4) == 0).all()


# --- Loss


@pytest.mark.parametrize("normalize_length", [True, False])
def test_the_loss_equals_the_textbook(normalize_length: bool) -> None:
    # The paper's objective as nested loops.
    new, old, ref = (0.3 * numbers(seed, 3, 4) for seed in (0, 1, 2))
    advantages = numbers(3, 3, 4)
    total, penalty = 0.0, 0.0
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = math.exp(new[i, t] - old[i, t])
            a = advantages[i, t].item()
            divisor = 3 * (length if normalize_length else 1)
            total += min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / divisor
            to_ref = math.exp(ref[i, t] - new[i, t])
            penalty += (to_ref - math.log(to_ref) - 1) / divisor
    surrogate, kl = grpo_loss(new, old, ref, advantages, MASK, 0.2, normalize_length)
    assert surrogate.item() == pytest.approx(-total)
    assert kl.item() == pytest.approx(penalty)


@pytest.mark.parametrize("normalize_length", [True, False])
def test_the_gradient_at_the_old_policy_is_that_of_reinforce(normalize_length: bool) -> None:
    new = numbers(0, 3, 4).requires_grad_()
    advantages = numbers(1, 3, 4)
    surrogate, _ = grpo_loss(
        new, new.detach(), new.detach(), advantages, MASK, 0.2, normalize_length
    )
    surrogate.backward()
    lengths = torch.tensor(LENGTHS)[:, None] if normalize_length else 1
    torch.testing.assert_close(new.grad, (-advantages / lengths / 3).masked_fill(~MASK, 0.0))


def test_with_the_length_every_completion_counts_the_same_and_without_every_token() -> None:
    x = torch.ones(3, 4).masked_fill(~MASK, torch.inf)
    assert completion_mean(x, MASK, normalize_length=True).item() == 1
    assert completion_mean(x, MASK, normalize_length=False).item() == pytest.approx(8 / 3)


def test_a_token_that_left_the_clip_is_pushed_no_further() -> None:
    new = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    grpo_loss(new, torch.zeros(1, 4), torch.zeros(1, 4), advantages, mask, 0.2)[0].backward()
    assert (new.grad[0] != 0).tolist() == [False, True, True, False]


# --- KL


def test_the_kl_estimate_is_unbiased_and_never_negative() -> None:
    policy, reference = numbers(0, 6).log_softmax(0), numbers(1, 6).log_softmax(0)
    estimates = kl_estimate(reference - policy)
    assert (estimates >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)


def test_the_penalty_pulls_by_the_gradient_of_the_other_kl() -> None:
    logits, reference = numbers(0, 6).requires_grad_(), numbers(1, 6).log_softmax(0)
    policy = logits.log_softmax(0)
    # As in training: the samples, here all of them by their probability, are held fixed.
    (gradient,) = torch.autograd.grad(
        (policy.detach().exp() * kl_estimate(reference - policy)).sum(), logits, retain_graph=True
    )
    other_way_round = (reference.exp() * (reference - policy)).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(other_way_round, logits)[0])


# --- Agent


def test_the_penalty_is_part_of_the_loss_and_not_of_the_return(
    make_model, make_vector_env, recorded, tmp_path
) -> None:
    agent = GRPO(
        make_model(),
        make_vector_env(4),
        episodes_per_iteration=8,
        kl_coef=0.7,
        max_grad_norm=1e6,
        num_epochs=1,
        minibatch_size=None,
        log_dir=tmp_path,
    )
    with torch.no_grad():  # a reference that differs
        agent.ref_policy.model.lm_head.weight.mul_(0.5)
    old = copy.deepcopy(agent.policy)
    rollouts = recorded(groups, "collect_episodes")
    agent.learn(1)  # a single gradient step; the gradient is still there
    rollout = rollouts[0].result
    mask = rollout.completion_mask
    new, ref = old.evaluate(*rollout.texts), agent.ref_policy.evaluate(*rollout.texts)
    advantages = group_relative_advantages(rollout.scores, 4)[:, None]
    ratio = ref.logprobs - new.logprobs
    penalty = ratio.exp() - ratio - 1
    per_token = 0.7 * penalty - advantages * (new.logprobs - new.logprobs.detach()).exp()
    (per_token.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)).mean().backward()
    for got, expected in zip(agent.policy.parameters(), old.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(got.grad, expected.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["normalize_std", "normalize_length"])
def test_a_switch_is_true_or_false(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        GRPOConfig(**{name: 1})
