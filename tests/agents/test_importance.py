from __future__ import annotations

from itertools import product

import pytest
import torch

from textgym.agents.grpo import grpo_loss
from textgym.agents.importance import sequence_weights, token_weights, weighted_advantages
from textgym.agents.ppo import policy_loss
from textgym.agents.rloo import rloo_loss, rloo_token_loss, sequence_log_ratio

LARGE = 1e9  # as a cap: nothing is cut off
ONE_TOKEN = torch.tensor([[True]])


def ppo(logprobs, advantages, mask):
    return policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)


def grpo(logprobs, advantages, mask):
    old = logprobs.detach()
    return grpo_loss(logprobs, old, old, advantages, mask, 0.2, normalize_length=False)[0]


def rloo_tokens(logprobs, advantages, mask):
    return rloo_token_loss(logprobs - logprobs.detach(), advantages, mask, 0.2)


def rloo_sequences(logprobs, advantages, mask):
    log_ratio = sequence_log_ratio(logprobs, logprobs.detach(), torch.ones_like(logprobs), mask)
    return rloo_loss(log_ratio, advantages, 0.2)


def random_logits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("loss", [ppo, grpo, rloo_tokens])
def test_token_weights_make_the_expected_gradient_that_of_the_policy(loss) -> None:
    """Over all actions of one state, E_sampler[w · grad] = E_policy[grad]."""
    logits = random_logits(5).requires_grad_()
    mu, advantages = random_logits(6)[:5].log_softmax(0), random_logits(7)[:5]

    def expected_gradient(of_actions: torch.Tensor, weigh: bool) -> torch.Tensor:
        total = torch.zeros_like(logits)
        for action in range(5):
            logprob = logits.log_softmax(0)[action].view(1, 1)
            advantage = advantages[action].view(1, 1)
            if weigh:
                advantage, _ = weighted_advantages(
                    advantage, logprob, mu[action].view(1, 1), ONE_TOKEN, LARGE
                )
            gradient = gradient_of(loss(logprob, advantage, ONE_TOKEN), logits)
            total += of_actions[action] * gradient
        return total

    pi = logits.detach().softmax(0)
    score_function = advantages[:, None] * (torch.eye(5, dtype=torch.float64) - pi)
    truth = -(pi[:, None] * score_function).sum(0)
    torch.testing.assert_close(expected_gradient(mu.exp(), weigh=True), truth)
    torch.testing.assert_close(expected_gradient(pi, weigh=False), truth)
    assert (expected_gradient(mu.exp(), weigh=False) - truth).abs().max() > 0.05


@pytest.fixture
def two_steps():
    """Policy logits and sampler of a process of two steps, three actions each, and its returns."""
    logits = random_logits(4, 3).requires_grad_()  # the start, then one state per first action
    mu = random_logits(4, 4)[:, :3].log_softmax(-1)
    return logits, mu, random_logits(9)


def rows_of(logprobs: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """Log-probabilities of the two tokens, (1, 2)."""
    return torch.stack([logprobs[0, first], logprobs[1 + first, second]])[None]


def test_sequence_weights_make_the_expected_gradient_that_of_the_policy(two_steps) -> None:
    logits, mu, returns = two_steps
    mask = torch.tensor([[True, True]])
    weighted, truth = torch.zeros_like(logits), torch.zeros_like(logits)
    for index, (first, second) in enumerate(product(range(3), repeat=2)):
        logprobs = rows_of(logits.log_softmax(-1), first, second)
        sampler_logprobs = rows_of(mu, first, second)
        advantage, _ = weighted_advantages(
            returns[[index]], logprobs, sampler_logprobs, mask, LARGE
        )
        gradient = gradient_of(rloo_sequences(logprobs, advantage, mask), logits)
        weighted += sampler_logprobs.sum().exp() * gradient
        probability = rows_of(logits.log_softmax(-1), first, second).sum().exp()
        truth += gradient_of(-probability * returns[index], logits)
    torch.testing.assert_close(weighted, truth)


def test_token_weights_correct_actions_but_not_states(two_steps) -> None:
    """What the module says: the states stay those that the sampler reaches."""
    logits, mu, returns = two_steps
    mask = torch.tensor([[True, True]])
    pi = logits.detach().log_softmax(-1)
    weighted, expected = torch.zeros_like(logits), torch.zeros_like(logits)
    for index, (first, second) in enumerate(product(range(3), repeat=2)):
        logprobs = rows_of(logits.log_softmax(-1), first, second)
        sampler_logprobs = rows_of(mu, first, second)
        # Credit for the second token alone, so that its gradient depends on nothing later.
        advantages = torch.stack([torch.zeros(()).double(), returns[index]])[None]
        advantages, _ = weighted_advantages(advantages, logprobs, sampler_logprobs, mask, LARGE)
        gradient = gradient_of(rloo_tokens(logprobs, advantages, mask), logits)
        weighted += sampler_logprobs.sum().exp() * gradient
        loss = -returns[index] * logits.log_softmax(-1)[1 + first, second]
        probability = mu[0, first].exp() * pi[1 + first, second].exp()
        expected += probability * gradient_of(loss, logits)
    torch.testing.assert_close(weighted, expected)


@pytest.mark.parametrize("weights_of", [token_weights, sequence_weights])
def test_the_cap_bounds_weights_from_above_alone(weights_of) -> None:
    logprobs, mask = torch.tensor([[-1.0], [-1.0], [-9.0]]), torch.ones(3, 1, dtype=torch.bool)
    sampler_logprobs = torch.tensor([[-1.5], [-8.0], [-1.0]])
    weights = weights_of(logprobs, sampler_logprobs, mask, cap=3.0).flatten()
    assert weights.tolist() == pytest.approx([1.6487213, 3.0, 3.3546e-4], rel=1e-4)


def test_padding_has_no_weight_and_does_not_count(two_steps) -> None:
    logprobs = torch.tensor([[-1.0, -torch.inf], [-1.0, -2.0]])
    sampler_logprobs = torch.tensor([[-1.0, 0.0], [-3.0, -1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    advantages, scalars = weighted_advantages(
        torch.ones(2, 2), logprobs, sampler_logprobs, mask, cap=2.0
    )
    assert advantages.flatten().tolist() == pytest.approx([1.0, 0.0, 2.0, 0.36787944])
    assert scalars["rollout/importance_weight"] == pytest.approx((1 + 2 + 0.36787944) / 3)
    assert scalars["rollout/importance_capped"] == pytest.approx(1 / 3)
    of_sequences, _ = weighted_advantages(
        torch.ones(2), logprobs, sampler_logprobs, mask, cap=LARGE
    )
    assert of_sequences.tolist() == pytest.approx([1.0, 2.7182817])


@pytest.mark.parametrize("advantages", [torch.ones(1), torch.ones(1, 2)])
def test_a_weight_at_the_cap_is_not_cut(advantages) -> None:
    logprobs, mask = torch.full((1, 2), -1.0), torch.ones(1, 2, dtype=torch.bool)
    _, scalars = weighted_advantages(advantages, logprobs, logprobs, mask, cap=1.0)
    assert scalars["rollout/importance_capped"] == 0


def test_weights_have_no_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, True]])
    for advantages in (torch.ones(1), torch.ones(1, 2)):
        weighted, _ = weighted_advantages(advantages, logprobs, torch.full((1, 2), -1.5), mask, 2.0)
        assert not weighted.requires_grad
