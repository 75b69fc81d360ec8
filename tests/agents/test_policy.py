from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from textgym.agents.policy import (
    ActionRules,
    LanguageModelPolicy,
    masked_entropy,
    masked_logprobs,
    position_ids_from_mask,
    sample,
)
from textgym.errors import InvalidArgumentError

ARCHITECTURES = ["qwen3", "gpt2"]
RULES = ActionRules(num_actions=20, eos_token_id=2, min_new_tokens=3)


def padded(rows: list[list[int]], width: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        start = 0 if side == "right" else width - len(tokens)
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = True
    return ids, mask


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
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.7, 0.05, 0.0])
    logprobs = probabilities.log().expand(40_000, -1)
    counts = sample(logprobs, torch.Generator().manual_seed(0)).bincount(minlength=6)
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    result = chisquare(counts[possible], 40_000 * probabilities[possible].double())
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


def test_an_entropy_without_gradient_is_the_same_number(make_model) -> None:
    policy = LanguageModelPolicy(make_model(), RULES)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids).bool()
    looked_at = policy.evaluate(ids, mask, mask[:, 2:], entropy_gradient=False)
    learned_from = policy.evaluate(ids, mask, mask[:, 2:])
    assert torch.equal(looked_at.entropy, learned_from.entropy)
    assert learned_from.entropy.requires_grad
    assert not looked_at.entropy.requires_grad
    assert looked_at.logprobs.requires_grad


def test_positions_count_tokens_not_columns() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert position_ids_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_forward_does_not_see_the_padding(make_model, architecture: str, side: str) -> None:
    policy = LanguageModelPolicy(make_model(architecture))
    torch.nn.init.normal_(policy.value_head.weight)
    rows = [[5, 6, 7, 8, 9], [4, 3]]
    ids, mask = padded(rows, width=7, side=side)
    with torch.no_grad():
        logits, values = policy(ids, mask)
        for row, tokens in enumerate(rows):
            alone = torch.tensor([tokens])
            expected_logits, expected_values = policy(alone, torch.ones_like(alone))
            torch.testing.assert_close(logits[row, mask[row]], expected_logits[0])
            torch.testing.assert_close(values[row, mask[row]], expected_values[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluate_reads_the_columns_before_the_completion(make_model, architecture: str) -> None:
    model = make_model(architecture).eval()
    policy = LanguageModelPolicy(model, RULES, temperature=0.7)
    torch.nn.init.normal_(policy.value_head.weight)
    prompts, completions = [[5, 6], [9]], [[7, 8], [4, 3, 6]]
    input_ids = torch.tensor([[5, 6, 7, 8, 0], [0, 9, 4, 3, 6]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    completion_mask = attention_mask[:, 2:]
    with torch.no_grad():
        logprobs, entropy, values = policy.evaluate(input_ids, attention_mask, completion_mask)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            for t, token in enumerate(completion):
                text = torch.tensor([prompt + completion[:t]])
                output = model(text, output_hidden_states=True)
                all_logprobs = masked_logprobs(
                    output.logits[0, -1], torch.tensor(t), RULES, temperature=0.7
                )
                value = policy.value_head(output.hidden_states[-1][0, -1])[0]
                torch.testing.assert_close(logprobs[row, t], all_logprobs[token])
                torch.testing.assert_close(entropy[row, t], masked_entropy(all_logprobs))
                torch.testing.assert_close(values[row, t], value)
    assert logprobs[0, 2] == entropy[0, 2] == values[0, 2] == 0


def test_an_illegal_fill_token_leaves_gradients_finite(make_model) -> None:
    policy = LanguageModelPolicy(make_model(), RULES)
    input_ids = torch.tensor([[5, 6, 7, 2, 2]])  # filled with EOS, illegal before step 3
    mask = torch.tensor([[1, 1, 1, 0, 0]]).bool()
    logprobs, entropy, values = policy.evaluate(input_ids, mask, mask[:, 2:])
    (logprobs.sum() + entropy.sum() + values.sum()).backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)


def test_values_start_at_zero(make_model) -> None:
    policy = LanguageModelPolicy(make_model())
    _, values = policy(torch.tensor([[3, 4, 5]]), torch.ones(1, 3))
    assert (values == 0).all()


def test_dropout_is_off(make_model) -> None:
    policy = LanguageModelPolicy(make_model("gpt2").train())  # 10% dropout by default
    ids, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3)
    assert torch.equal(policy(ids, mask)[0], policy(ids, mask)[0])


def test_a_model_with_too_few_tokens_is_refused(make_model) -> None:
    with pytest.raises(InvalidArgumentError, match=r"20 tokens.*21 actions"):
        LanguageModelPolicy(make_model(), ActionRules(num_actions=21))


def test_weights_keep_their_gradients_after_reading_under_autocast(make_model) -> None:
    policy = LanguageModelPolicy(make_model(), RULES, autocast_dtype=torch.bfloat16)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids).bool()
    with torch.autocast("cpu", torch.bfloat16):  # the user's own, around all of it
        with policy.reading() as reader:
            reader.read([[5, 6]])
        policy.evaluate(ids, mask, mask[:, 2:]).logprobs.sum().backward()
    gradients = [p.grad for p in policy.model.parameters()]
    assert all(gradient is not None and (gradient != 0).any() for gradient in gradients)
