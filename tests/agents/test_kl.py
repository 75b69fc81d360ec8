"""Estimates of the KL divergence, and penalties whose gradients are compared exactly.

A tiny process whose episodes can all be listed: expectations and gradients are sums over them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textgym.agents.distribution import ActionRules, action_logprobs, state_kl
from textgym.agents.kl import KL_ESTIMATES, penalty_per_token
from textgym.agents.losses import completion_mean, masked_mean, whitening
from textgym.agents.ppo import gae
from textgym.agents.returns import returns_to_go
from textgym.exact import Trajectories

TEXTS = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1, 2)] + [[2]]
PROCESS = Trajectories.of_texts(TEXTS, num_actions=3)
# Token 2 ends the text and is illegal in the second step: the exact KL must not count it there.
STATES, ACTIONS, MASK = (torch.tensor(x) for x in (PROCESS.states, PROCESS.actions, PROCESS.mask))
LEGAL = torch.tensor(PROCESS.legal)
RULES = ActionRules(num_actions=3)
STEPS = torch.arange(3)
COEF = 0.7


def table(seed: int, near: Tensor | None = None) -> Tensor:
    """Logits of a policy, (num_states, num_actions); ``near`` another one if given."""
    logits = torch.randn(LEGAL.shape, generator=torch.Generator().manual_seed(seed))
    if near is not None:
        logits = near + 0.01 * logits
    return logits.masked_fill(~LEGAL, -torch.inf)


REF = table(0)


class Evaluated:
    """All episodes under a policy, and what they may pay."""

    def __init__(self, policy: Tensor, ref: Tensor = REF) -> None:
        self.logits = policy.clone().requires_grad_()
        self.logprobs, _ = action_logprobs(self.logits[STATES], ACTIONS, STEPS, RULES)
        self.ref_logprobs, _ = action_logprobs(ref[STATES], ACTIONS, STEPS, RULES)
        self.kl = state_kl(self.logits[STATES], ref[STATES], STEPS, RULES)
        self.logprobs, self.ref_logprobs, self.kl = (
            x.masked_fill(~MASK, 0.0) for x in (self.logprobs, self.ref_logprobs, self.kl)
        )
        self.probability = self.logprobs.sum(1).exp()  # (num_episodes,)

    def penalty(self, name: str) -> Tensor:
        with torch.no_grad():
            return penalty_per_token(name, self.logprobs, self.ref_logprobs, self.kl, MASK)

    def objectives(self, name: str, rewards: Tensor) -> Tensor:
        """What one sampled episode lets the agent ascend, for each episode, (num_episodes,)."""
        to_go = returns_to_go(rewards - COEF * self.penalty(name), MASK)
        objective = (to_go * self.logprobs).sum(1)
        return objective - COEF * self.kl.sum(1) if name == "exact" else objective

    def gradients(self, name: str, rewards: Tensor) -> Tensor:
        """The gradient that each episode gives, (num_episodes, num_states, num_actions)."""
        return torch.stack(
            [
                torch.autograd.grad(one, self.logits, retain_graph=True)[0]
                for one in self.objectives(name, rewards)
            ]
        )

    def mean(self, per_episode: Tensor) -> Tensor:
        return torch.einsum("e,e...->...", self.probability.detach(), per_episode)


def rewards_of_score(seed: int = 5) -> Tensor:
    scores = torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(seed))
    is_last = MASK.sum(1, keepdim=True) - 1 == STEPS
    return scores[:, None] * is_last


def true_gradient(rewards: Tensor, policy: Tensor) -> Tensor:
    """Of the expected score minus the KL of whole episodes, differentiated as it stands."""
    evaluated = Evaluated(policy)
    log_ratio = (evaluated.logprobs - evaluated.ref_logprobs).sum(1)
    value = (evaluated.probability * (rewards.sum(1) - COEF * log_ratio)).sum()
    return torch.autograd.grad(value, evaluated.logits)[0]


# --- Values


def test_all_unbiased_estimates_have_the_mean_of_the_divergence_of_whole_episodes() -> None:
    evaluated = Evaluated(table(1))
    log_ratio = evaluated.ref_logprobs - evaluated.logprobs
    divergence = evaluated.mean(-log_ratio.sum(1)).item()
    assert divergence > 0.1
    for estimate in (KL_ESTIMATES["k3"](log_ratio), evaluated.kl):
        assert evaluated.mean(estimate.sum(1)).item() == pytest.approx(divergence, rel=1e-5)


def test_the_exact_one_has_the_least_variance() -> None:
    evaluated = Evaluated(table(1))
    log_ratio = evaluated.ref_logprobs - evaluated.logprobs

    def variance(per_episode: Tensor) -> float:
        return (evaluated.mean(per_episode.square()) - evaluated.mean(per_episode) ** 2).item()

    exact = variance(evaluated.kl.sum(1))
    assert exact < 0.5 * variance(-log_ratio.sum(1))


def test_estimates_at_hand() -> None:
    log_ratio = torch.tensor([0.0, 1.0, -2.0])
    for name, expected in (
        ("k1", [0.0, -1.0, 2.0]),
        ("k2", [0.0, 0.5, 2.0]),
        ("k3", [0.0, 2.718282 - 2, 0.135335 + 1]),
    ):
        assert KL_ESTIMATES[name](log_ratio).tolist() == pytest.approx(expected, abs=1e-5)


# --- Gradients


@pytest.mark.parametrize("name", ["k1", "exact"])
def test_the_expected_gradient_is_that_of_score_minus_divergence(name: str) -> None:
    rewards, policy = rewards_of_score(), table(1)
    evaluated = Evaluated(policy)
    gradient = evaluated.mean(evaluated.gradients(name, rewards))
    torch.testing.assert_close(gradient, true_gradient(rewards, policy), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_exact_penalty_has_less_variance_than_the_sampled_one(seed: int) -> None:
    evaluated = Evaluated(table(seed))
    nothing = torch.zeros(MASK.shape)
    variances = {}
    for name in ("k1", "exact"):
        gradients = evaluated.gradients(name, nothing)
        mean = evaluated.mean(gradients)
        variances[name] = evaluated.mean((gradients - mean).square().sum((1, 2))).item()
    assert variances["exact"] < 0.7 * variances["k1"]


def test_the_gradient_of_k3_is_the_difference_of_two_divergences() -> None:
    # In an episode of one step, the gradient of KL(π‖ref) − KL(ref‖π), here by hand.
    logits, ref = torch.tensor([[0.3, -1.0, 0.5]], requires_grad=True), torch.tensor([[1.0, 0, 0]])
    p, q = logits.softmax(1), ref.softmax(1)
    difference = (p * (p / q).log()).sum() - (q * (q / p).log()).sum()
    (expected,) = torch.autograd.grad(difference, logits, retain_graph=True)
    actions = torch.arange(3)[:, None]
    logprobs, ref_logprobs = (
        x.log_softmax(1).T for x in (logits, ref)
    )  # (3, 1): one episode for each action
    mask = torch.ones_like(actions, dtype=torch.bool)
    penalty = penalty_per_token("k3", logprobs, ref_logprobs, torch.zeros(3, 1), mask).detach()
    loss = (p.detach() * penalty.T * logprobs.T).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)


def test_close_to_the_reference_k2_and_k3_hardly_pull() -> None:
    evaluated = Evaluated(table(4, near=REF))
    nothing = torch.zeros(MASK.shape)
    pull = {
        name: evaluated.mean(evaluated.gradients(name, nothing)).norm().item()
        for name in ("k1", "k2", "k3", "exact")
    }
    assert pull["exact"] == pytest.approx(pull["k1"], rel=1e-2)
    assert max(pull["k2"], pull["k3"]) < 0.05 * pull["k1"]


def test_whitened_advantages_and_the_direct_part_keep_their_proportion() -> None:
    # With as many repetitions of each episode as its probability says, the update of PPO at the
    # policy that sampled is the true gradient, but for a factor. Baselines of state and batch
    # do not change it.
    rewards = rewards_of_score()
    evaluated = Evaluated(table(1))
    penalty = evaluated.penalty("exact")
    advantages, _ = gae(rewards - COEF * penalty, torch.zeros(MASK.shape), MASK, 1.0, 1.0)
    shift, scale = whitening(advantages[MASK])
    white = (advantages - shift) * scale
    weight = evaluated.probability.detach()[:, None] * MASK
    loss = -(weight * white * evaluated.logprobs).sum()
    loss = loss + COEF * scale * (weight * evaluated.kl).sum()
    (gradient,) = torch.autograd.grad(loss, evaluated.logits)
    expected = -scale * true_gradient(rewards, table(1))
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_means_over_tokens_and_sums_over_completions_agree_but_for_a_factor() -> None:
    # PPO averages the direct part over tokens, RLOO sums it over a completion.
    kl = Evaluated(table(1)).kl.detach()
    factor = MASK.sum() / len(MASK)
    torch.testing.assert_close(
        completion_mean(kl, MASK, normalize_length=False), factor * masked_mean(kl, MASK)
    )


# --- Penalty per token


def test_the_exact_penalty_of_a_token_is_the_divergence_of_the_next_state() -> None:
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    mask = kl > 0
    zeros = torch.zeros_like(kl)
    penalty = penalty_per_token("exact", zeros, zeros, kl, mask, gamma=0.5)
    assert penalty.tolist() == [[1.0, 1.5, 0.0], [2.5, 0.0, 0.0]]
