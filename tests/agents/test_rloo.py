from __future__ import annotations

import numpy as np
import pytest
import torch

from textgym.agents import RLOO, groups, rloo
from textgym.agents.returns import mean_of_others
from textgym.agents.returns import returns_to_go as torch_returns_to_go
from textgym.agents.rloo import (
    leave_one_out_advantages,
    rloo_loss,
    rloo_token_loss,
    sequence_log_ratio,
)
from textgym.exact import Trajectories, policy_gradient, returns_to_go

LENGTHS = torch.tensor([4, 1, 3])
MASK = torch.arange(4) < LENGTHS[:, None]


def returns_of(num_groups: int, group_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(group_size)
    return torch.randn(num_groups * group_size, generator=generator, dtype=torch.float64)


# --- Advantages


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_advantages_equal_a_plain_loop(group_size: int) -> None:
    returns = returns_of(3, group_size)
    advantages = leave_one_out_advantages(returns, group_size)
    for i in range(len(returns)):
        group = i // group_size
        members = range(group * group_size, (group + 1) * group_size)
        others = [returns[j].item() for j in members if j != i]
        assert advantages[i].item() == pytest.approx(returns[i].item() - sum(others) / len(others))


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_advantages_are_those_of_the_groups_mean_but_for_a_factor(group_size: int) -> None:
    groups = returns_of(3, group_size).view(3, group_size)
    from_mean = (groups - groups.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(
        leave_one_out_advantages(groups.flatten(), group_size),
        from_mean * group_size / (group_size - 1),
    )


def test_advantages_of_a_group_sum_to_zero_and_forget_its_level() -> None:
    returns = returns_of(3, 4)
    advantages = leave_one_out_advantages(returns, 4)
    torch.testing.assert_close(advantages.view(3, 4).sum(1), torch.zeros(3).double())
    levels = torch.tensor([5.0, -7.0, 0.0]).double().repeat_interleave(4)
    torch.testing.assert_close(leave_one_out_advantages(returns + levels, 4), advantages)


# --- Loss


def test_the_gradient_is_that_of_reinforce() -> None:
    # A table of logits, one row per step, and the gradient written down by hand:
    # ∂ log π(a)/∂ logit_b = 1[a = b] − π(b).
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(5, (3, 4), generator=generator)
    advantages = torch.tensor([2.0, -1.0, 0.5]).double()
    weights = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(-1)[torch.arange(4), actions]  # (3, 4)
    log_ratio = sequence_log_ratio(logprobs, logprobs.detach(), weights, MASK)
    rloo_loss(log_ratio, advantages, clip_coef=0.2).backward()
    expected = np.zeros((4, 5))
    probs = logits.detach().softmax(-1).numpy()
    for row in range(3):
        for t in range(int(LENGTHS[row])):
            score = -probs[t].copy()
            score[actions[row, t]] += 1
            expected[t] -= advantages[row].item() * weights[row, t].item() * score / 3
    np.testing.assert_allclose(logits.grad, expected, atol=1e-12)


def test_in_expectation_the_gradient_is_the_exact_policy_gradient() -> None:
    # Every pair of texts of a small process, weighted by its probability, is every group of two.
    texts = [[0, 0], [0, 1], [1, 0], [1, 1], [2]]
    trajectories = Trajectories.of_texts(texts)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(trajectories.num_states, 3))
    values[~trajectories.legal] = -np.inf  # the gradient of the exact one is 0 there
    rewards = np.zeros(trajectories.mask.shape)
    rewards[np.arange(5), trajectories.mask.sum(1) - 1] = rng.normal(size=5)
    exact = policy_gradient(
        trajectories, values, returns_to_go(rewards, trajectories.mask)[:, :1] * trajectories.mask
    )
    logits = torch.tensor(values, requires_grad=True)
    table = logits.log_softmax(-1)
    states, actions = torch.tensor(trajectories.states), torch.tensor(trajectories.actions)
    mask = torch.tensor(trajectories.mask)
    chosen = table[states, actions]  # (5, 2)
    probs = chosen.masked_fill(~mask, 0.0).sum(1).exp().detach()
    scores = torch.tensor(rewards.sum(1))
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            pair = torch.tensor([i, j])
            log_ratio = sequence_log_ratio(
                chosen[pair], chosen[pair].detach(), torch.ones(2, 2), mask[pair]
            )
            advantages = leave_one_out_advantages(scores[pair], 2)
            loss = loss + probs[i] * probs[j] * rloo_loss(log_ratio, advantages, 0.2)
    loss.backward()
    np.testing.assert_allclose(-logits.grad, exact, atol=1e-12)


def test_token_advantages_of_causal_credit_keep_the_gradient_and_lower_its_variance() -> None:
    # Every pair of texts of a small process, weighted by its probability, is every group of two.
    texts = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)] + [[0, 2], [2]]
    trajectories = Trajectories.of_texts(texts)
    rng = np.random.default_rng(1)
    states, actions, mask = (
        torch.tensor(x) for x in (trajectories.states, trajectories.actions, trajectories.mask)
    )
    shape = trajectories.num_states, trajectories.num_actions
    values = rng.normal(size=shape)
    values[~trajectories.legal] = -np.inf
    logits = torch.tensor(values, requires_grad=True)
    chosen = logits.log_softmax(-1)[states, actions].masked_fill(~mask, 0.0)
    probs = chosen.sum(1).exp().detach()
    causal = torch.tensor(rng.normal(size=shape))[states, actions] * mask
    hindsight = torch.roll(causal, 3, dims=0) * mask  # what other trajectories were paid
    hindsight[:, 0] += causal.sum(1) - hindsight.sum(1)  # the same returns

    def gradient_and_variance(credit: torch.Tensor | None) -> tuple[torch.Tensor, float]:
        gradients, weights = [], []
        for i in range(len(texts)):
            for j in range(len(texts)):
                pair = torch.tensor([i, j])
                log_ratio = chosen[pair] - chosen[pair].detach()
                if credit is None:
                    advantages = leave_one_out_advantages(causal.sum(1)[pair], 2)[:, None]
                    advantages = advantages.expand(2, 3)
                else:
                    to_go = torch_returns_to_go(credit[pair], mask[pair])
                    advantages = to_go - mean_of_others(to_go, mask[pair], 2)
                loss = rloo_token_loss(log_ratio, advantages, mask[pair], 0.2)
                gradients.append(torch.autograd.grad(loss, logits, retain_graph=True)[0])
                weights.append(probs[i] * probs[j])
        stacked, weight = torch.stack(gradients), torch.stack(weights)
        mean = (weight[:, None, None] * stacked).sum(0)
        return mean, (weight * (stacked - mean).square().sum((1, 2))).sum().item()

    of_sequence, variance_of_sequence = gradient_and_variance(None)
    of_tokens, variance_of_tokens = gradient_and_variance(causal)
    torch.testing.assert_close(of_tokens, of_sequence, atol=1e-10, rtol=0)
    assert variance_of_tokens < variance_of_sequence
    biased, _ = gradient_and_variance(hindsight)
    assert (biased - of_sequence).norm() > 0.05 * of_sequence.norm()


def test_the_ratio_is_that_of_the_whole_completion() -> None:
    logprobs, old = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    log_ratio = sequence_log_ratio(logprobs, old, torch.ones(3, 4), MASK)
    for row, length in enumerate(LENGTHS.tolist()):
        probability, old_probability = (x[row, :length].sum().exp() for x in (logprobs, old))
        torch.testing.assert_close(log_ratio[row].exp(), probability / old_probability)


def test_what_lies_outside_the_mask_does_not_count() -> None:
    logprobs = torch.zeros(3, 4).masked_fill(~MASK, -torch.inf).requires_grad_()
    log_ratio = sequence_log_ratio(logprobs, torch.zeros(3, 4), torch.ones(3, 4), MASK)
    loss = rloo_loss(log_ratio, torch.tensor([1.0, 2.0, 3.0]), 0.2)
    assert loss.item() == pytest.approx(-2.0)
    loss.backward()
    assert (logprobs.grad[~MASK] == 0).all()


def test_a_completion_that_left_the_clip_is_pushed_no_further() -> None:
    log_ratio = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    rloo_loss(log_ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), clip_coef=0.2).backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False]


# --- Agent


def test_the_penalty_is_part_of_the_return(make_model, make_vector_env, recorded, tmp_path) -> None:
    agent = RLOO(
        make_model(), make_vector_env(4), episodes_per_iteration=8, kl_coef=0.7, log_dir=tmp_path
    )
    with torch.no_grad():  # a reference that differs
        agent.ref_policy.model.lm_head.weight.mul_(0.5)
    rollouts = recorded(groups, "collect_episodes")
    losses = recorded(rloo, "rloo_loss")
    row = agent.learn(1).history[0]
    rollout, (_, advantages, *_) = rollouts[0].result, losses[0].args
    with torch.no_grad():
        ref = agent.ref_policy.evaluate(*rollout.texts)
    log_ratio = (rollout.logprobs - ref.logprobs).sum(1)
    returns = (rollout.scores - 0.7 * log_ratio).tolist()
    expected = [
        returns[i] - sum(returns[j] for j in range(8) if j // 4 == i // 4 and j != i) / 3
        for i in range(8)
    ]
    # The minibatch, here all episodes, is shuffled.
    assert sorted(advantages.tolist()) == pytest.approx(sorted(expected), abs=1e-4)
    assert row["rollout/kl"] == pytest.approx(log_ratio.mean().item(), rel=1e-4)
