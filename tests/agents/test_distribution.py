from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from textgym.agents import distribution
from textgym.agents.distribution import (
    ActionRules,
    action_logprobs,
    masked_entropy,
    masked_logprobs,
    sample,
    state_kl,
)
from textgym.errors import InvalidArgumentError

RULES = ActionRules(num_actions=20, eos_token_id=2, min_new_tokens=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_actions", -1), ("eos_token_id", 20), ("min_new_tokens", -1), ("pad_token_id", 0.5)],
)
def test_rules_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        ActionRules(**{"num_actions": 20, name: value})


def test_logprobs_are_normalised_over_the_legal_actions() -> None:
    logits = torch.randn(4, 6, 23)  # three logits beyond the action space
    logprobs = masked_logprobs(logits, torch.arange(6), RULES)
    legal = torch.ones(6, 23, dtype=torch.bool)
    legal[:, 20:] = False
    legal[:3, 2] = False
    for t in range(6):
        expected = logits[:, t, legal[t]].log_softmax(-1)
        torch.testing.assert_close(logprobs[:, t, legal[t]], expected)
        assert logprobs[:, t, ~legal[t]].isneginf().all()


def test_temperature_divides_the_logits() -> None:
    logits = torch.randn(5, 20)
    logprobs = masked_logprobs(logits, torch.tensor(3), RULES, temperature=0.5)
    torch.testing.assert_close(logprobs, (2 * logits).log_softmax(-1))


def test_entropy_counts_masked_tokens_as_nothing() -> None:
    logits = torch.randn(7, 20)
    logprobs = masked_logprobs(logits, torch.tensor(0), RULES)
    legal = torch.arange(20) != 2
    expected = torch.distributions.Categorical(logits=logits[:, legal]).entropy()
    torch.testing.assert_close(masked_entropy(logprobs), expected)


def test_masked_entropy_has_a_finite_gradient() -> None:
    logits = torch.randn(7, 20, requires_grad=True)
    masked_entropy(masked_logprobs(logits, torch.tensor(0), RULES)).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 2] == 0).all()


def test_samples_have_the_given_probabilities() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.7, 0.05, 0.0], dtype=torch.float64)
    logprobs = probabilities.log().float().expand(40_000, -1)
    counts = sample(logprobs, torch.Generator().manual_seed(0)).bincount(minlength=6)
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    result = chisquare(counts[possible], 40_000 * probabilities[possible])
    assert result.pvalue > 0.01


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_extreme_draws_are_possible_tokens(monkeypatch, uniform: float) -> None:
    """Also where the rounded probabilities do not sum to 1."""
    monkeypatch.setattr(
        torch, "rand", lambda size, **_: torch.full(size, uniform, dtype=torch.float64)
    )
    logits = torch.randn(200, 1_000, generator=torch.Generator().manual_seed(0))
    logits[:, :300] = logits[:, 700:] = -torch.inf
    tokens = sample(logits.log_softmax(dim=1), torch.Generator())
    assert (tokens == (300 if uniform == 0 else 699)).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_chosen_logprobs_and_entropy_are_those_of_all_tokens(
    monkeypatch, chunk: int, temperature: float
) -> None:
    monkeypatch.setattr(distribution, "_CHUNK", chunk)
    logits = torch.randn(4, 6, 23)  # three logits beyond the action space
    actions = torch.randint(3, 20, (4, 6))
    all_logprobs = masked_logprobs(logits, torch.arange(6), RULES, temperature)
    logprobs, entropy = action_logprobs(logits, actions, torch.arange(6), RULES, temperature)
    torch.testing.assert_close(logprobs, all_logprobs.gather(-1, actions[..., None])[..., 0])
    torch.testing.assert_close(entropy, masked_entropy(all_logprobs))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_their_gradient_is_that_of_autograd(
    monkeypatch, chunk: int, weights: tuple[float, float]
) -> None:
    monkeypatch.setattr(distribution, "_CHUNK", chunk)
    ours, theirs = (x.requires_grad_() for x in torch.randn(4, 6, 23).repeat(2, 1, 1, 1))
    actions = torch.randint(3, 20, (4, 6))
    of_logprobs, of_entropy = torch.randn(2, 4, 6)

    def loss(logprobs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        terms = (of_logprobs * logprobs, of_entropy * entropy)
        return sum(w * term.sum() for w, term in zip(weights, terms, strict=True) if w)

    loss(*action_logprobs(ours, actions, torch.arange(6), RULES, 0.7)).backward()
    all_logprobs = masked_logprobs(theirs, torch.arange(6), RULES, 0.7)
    logprobs = all_logprobs.gather(-1, actions[..., None])[..., 0]
    loss(logprobs, masked_entropy(all_logprobs)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_logits_in_bfloat16_are_looked_at_in_float32() -> None:
    logits = torch.randn(5, 20).bfloat16()
    actions = torch.randint(3, 20, (5,))
    step = torch.tensor(3)
    rounded = action_logprobs(logits, actions, step, RULES)
    exact = action_logprobs(logits.float(), actions, step, RULES)
    assert rounded[0].dtype == rounded[1].dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0)


def test_a_model_may_rule_out_tokens_by_itself() -> None:
    logits = torch.randn(1, 23)
    logits[0, 7] = -torch.inf
    logits.requires_grad_()
    logprobs, entropy = action_logprobs(logits, torch.tensor([4]), torch.tensor([5]), RULES)
    (logprobs + entropy).sum().backward()
    all_logprobs = masked_logprobs(logits.detach(), torch.tensor([5]), RULES)
    torch.testing.assert_close(entropy, masked_entropy(all_logprobs))
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 7] == 0


def test_an_illegal_action_is_impossible() -> None:
    logprobs, entropy = action_logprobs(
        torch.randn(1, 23), torch.tensor([21]), torch.tensor([5]), RULES
    )
    assert logprobs.isneginf().all()
    assert entropy.isfinite().all()


# --- The divergence of a state


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_the_divergence_of_a_state_and_its_gradient_are_those_of_the_definition(
    monkeypatch, chunk: int, temperature: float
) -> None:
    monkeypatch.setattr(distribution, "_CHUNK", chunk)
    logits, ref_logits, weights = torch.randn(4, 6, 23), torch.randn(4, 6, 23), torch.randn(4, 6)
    ours, theirs = (x.clone().requires_grad_() for x in (logits, logits))
    kl = state_kl(ours, ref_logits, torch.arange(6), RULES, temperature)
    (weights * kl).sum().backward()

    logprobs, ref_logprobs = (
        masked_logprobs(x, torch.arange(6), RULES, temperature) for x in (theirs, ref_logits)
    )
    is_legal = ~logprobs.isneginf()
    terms = logprobs.exp() * (logprobs - ref_logprobs).masked_fill(~is_legal, 0.0)
    expected = terms.masked_fill(~is_legal, 0.0).sum(-1)
    torch.testing.assert_close(kl, expected)
    # Autograd cannot pass infinities: differentiate the definition over the legal tokens alone.
    for t in range(6):
        legal = is_legal[0, t]
        p, q = ((x[:, t, legal] / temperature).log_softmax(-1) for x in (theirs, ref_logits))
        (weights[:, t] * (p.exp() * (p - q)).sum(-1)).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[:, :3, 2] == 0).all()
    assert (ours.grad[..., 20:] == 0).all()


def test_the_divergence_from_itself_is_zero_and_pulls_nowhere() -> None:
    logits = torch.randn(5, 23, requires_grad=True)
    kl = state_kl(logits, logits.detach(), torch.tensor(0), RULES)
    kl.sum().backward()
    assert (kl == 0).all()
    assert (logits.grad == 0).all()


def test_a_token_that_only_the_policy_rules_out_has_a_finite_divergence() -> None:
    logits, ref_logits = torch.randn(2, 1, 23)
    logits[0, 7] = -torch.inf
    logits.requires_grad_()
    kl = state_kl(logits, ref_logits, torch.tensor([5]), RULES)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert logits.grad.isfinite().all()
