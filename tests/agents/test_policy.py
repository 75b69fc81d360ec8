from __future__ import annotations

import pytest
import torch
from transformers import Qwen3ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from textgym.agents.distribution import ActionRules, masked_entropy, masked_logprobs
from textgym.agents.policy import LanguageModelPolicy, position_ids_from_mask
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


class CallsItsHeadItself(Qwen3ForCausalLM):
    """A model that multiplies by the weights of its head, instead of calling it."""

    def forward(self, *arguments, logits_to_keep=None, **keywords):
        output = self.model(*arguments, **keywords)
        logits = output.last_hidden_state @ self.lm_head.weight.T
        return CausalLMOutputWithPast(logits=logits, hidden_states=output.hidden_states)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "calls its head itself"])
def test_outputs_at_some_states_are_those_of_forward(make_model, architecture: str) -> None:
    if architecture in ARCHITECTURES:
        model = make_model(architecture)
    else:
        model = CallsItsHeadItself(make_model("qwen3").config)
    policy = LanguageModelPolicy(model)
    torch.nn.init.normal_(policy.value_head.weight)
    ids, mask = padded([[5, 6, 7, 8, 9], [4, 3], [2, 2, 2]], width=6, side="left")
    rows, columns = torch.tensor([0, 2, 0, 1, 0]), torch.tensor([3, 5, 5, 4, 3])
    logits, values = policy.outputs_at(ids, mask, rows, columns)
    all_logits, all_values = policy(ids, mask)
    torch.testing.assert_close(logits, all_logits[rows, columns])
    torch.testing.assert_close(values, all_values[rows, columns])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reading_on_sees_the_weights_of_now(make_model, architecture: str) -> None:
    policy = LanguageModelPolicy(make_model(architecture))
    torch.nn.init.normal_(policy.value_head.weight)
    texts = [[5, 6, 7], [4]]
    before, _ = policy.read_on(texts)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.5)
    for texts in ([[5, 6, 7], [4]], [[5, 6, 7, 8], [9, 9]]):  # the same texts, and then others
        logits, values = policy.read_on(texts)
        for row, text in enumerate(texts):
            alone = torch.tensor([text])
            expected_logits, expected_values = policy(alone, torch.ones_like(alone))
            torch.testing.assert_close(logits[row], expected_logits[0, -1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values[row], expected_values[0, -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, policy.read_on([[5, 6, 7], [4]])[0])


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
        numbers = policy.evaluate(input_ids, attention_mask, completion_mask)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            for t, token in enumerate(completion):
                text = torch.tensor([prompt + completion[:t]])
                output = model(text, output_hidden_states=True)
                all_logprobs = masked_logprobs(
                    output.logits[0, -1], torch.tensor(t), RULES, temperature=0.7
                )
                value = policy.value_head(output.hidden_states[-1][0, -1])[0]
                torch.testing.assert_close(numbers.logprobs[row, t], all_logprobs[token])
                torch.testing.assert_close(numbers.entropy[row, t], masked_entropy(all_logprobs))
                torch.testing.assert_close(numbers.values[row, t], value)
    assert numbers.logprobs[0, 2] == numbers.entropy[0, 2] == numbers.values[0, 2] == 0


def test_an_illegal_fill_token_leaves_gradients_finite(make_model) -> None:
    policy = LanguageModelPolicy(make_model(), RULES)
    input_ids = torch.tensor([[5, 6, 7, 2, 2]])  # filled with EOS, illegal before step 3
    mask = torch.tensor([[1, 1, 1, 0, 0]]).bool()
    with torch.no_grad():
        ref_logits = 0.5 * policy.completion_logits(input_ids, mask, mask[:, 2:])
    numbers = policy.compare(input_ids, mask, mask[:, 2:], ref_logits)
    (numbers.logprobs + numbers.entropy + numbers.values + numbers.kl).sum().backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compare_is_evaluate_of_both_policies_and_their_divergence(
    make_model, architecture: str
) -> None:
    policy, ref_policy = (
        LanguageModelPolicy(make_model(architecture, seed), RULES, temperature=0.7)
        for seed in (0, 1)
    )
    input_ids = torch.tensor([[5, 6, 7, 8, 0], [0, 9, 4, 3, 6]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    texts = input_ids, attention_mask, attention_mask[:, 2:]
    with torch.no_grad():
        compared = policy.compare(*texts, ref_policy.completion_logits(*texts))
        for name, expected in vars(policy.evaluate(*texts)).items():
            assert torch.equal(getattr(compared, name), expected)
        assert torch.equal(compared.ref_logprobs, ref_policy.evaluate(*texts).logprobs)
        logits, _ = policy(*texts[:2])
        ref_logits, _ = ref_policy(*texts[:2])
    for row, length in enumerate((2, 3)):
        for t in range(length):
            p, q = (
                torch.distributions.Categorical(
                    logits=masked_logprobs(x[row, t + 1], torch.tensor(t), RULES, 0.7)[legal(t)]
                )
                for x in (logits, ref_logits)
            )
            expected = torch.distributions.kl_divergence(p, q)
            torch.testing.assert_close(compared.kl[row, t], expected)
    assert compared.kl[0, 2] == 0


def legal(num_generated: int) -> torch.Tensor:
    tokens = torch.arange(RULES.num_actions)
    return tokens[(tokens != RULES.eos_token_id) | (num_generated >= RULES.min_new_tokens)]


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


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"autocast_dtype": torch.float16}])
def test_other_settings_are_refused(make_model, wrong) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{next(iter(wrong))}="):
        LanguageModelPolicy(make_model(), **wrong)


def test_autocast_is_named_as_for_the_agents(make_model) -> None:
    assert LanguageModelPolicy(make_model(), autocast_dtype="bfloat16").autocast_dtype is (
        torch.bfloat16
    )


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_gets_contiguous_states_of_the_completion_alone(
    make_model, architecture: str
) -> None:
    model = make_model(architecture)
    policy = LanguageModelPolicy(model)
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(*inputs))
    ids = torch.randint(3, 20, (3, 9))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        policy.evaluate(ids, mask, mask[:, 5:])
    assert [states.shape for states in seen] == [(3, 4, 16)]
    assert all(states.is_contiguous() for states in seen)
