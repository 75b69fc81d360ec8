"""Attention credit against eager maps, maps worked by hand, and planted attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.credit.texts import five_tokens
from textgym.credit import (
    AttentionCredit,
    AttentionRolloutCredit,
    PolicyAttentionCredit,
    PolicyLastAttentionCredit,
)
from textgym.credit.attention import attention_rollout
from textgym.errors import InvalidArgumentError
from textgym.models import Completions

PROMPTS, COMPLETIONS = [[1, 40, 41], [1]], [[50, 60, 70, 5, 2], [80, 90, 7]]


def eager_maps(model, prompt, completion):
    """Attention of one text without padding, shape (num_layers, num_heads, length, length)."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[*prompt, *completion]]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return torch.cat(output.attentions)


@pytest.mark.parametrize(
    ("arguments", "reduce"),
    [
        ({}, lambda maps: maps[-1].mean(0)),
        ({"layers": 0}, lambda maps: maps[0].mean(0)),
        ({"layers": (0, 1), "heads": "max"}, lambda maps: maps.amax(1).mean(0)),
        ({"heads": 2}, lambda maps: maps[-1, 2]),
    ],
)
def test_any_layer_and_head_gives_the_shares(classifier, reward_model, arguments, reduce):
    assigner = AttentionCredit(beta=1.0, **arguments)
    scored = reward_model.read(Completions.from_lists(PROMPTS, COMPLETIONS), assigner.readouts)
    credit = assigner(scored)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        weights = reduce(eager_maps(classifier, prompt, completion))[-1, len(prompt) :]
        expected = scored.score[row] * weights / weights.sum()
        got = credit[row][scored.completion_mask[row]]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_rollout_is_the_product_of_the_half_residual_maps():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 6, 6, generator=generator).softmax(-1)
    pooling = torch.nn.functional.one_hot(torch.tensor([5, 3]), 6).float()
    expected = []
    for row, position in enumerate((5, 3)):
        product = torch.eye(6)
        for layer in maps[row]:
            product = (layer / 2 + torch.eye(6) / 2) @ product
        expected.append(product[position])
    torch.testing.assert_close(attention_rollout(maps, pooling), torch.stack(expected))


def test_rollout_credit_reads_every_layer(classifier, reward_model):
    assigner = AttentionRolloutCredit(beta=1.0)
    scored = reward_model.read(Completions.from_lists(PROMPTS, COMPLETIONS), assigner.readouts)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        first, second = eager_maps(classifier, prompt, completion).mean(1)
        eye = torch.eye(len(first))
        flow = ((second + eye) @ (first + eye) / 4)[-1, len(prompt) :]
        got = assigner(scored)[row][scored.completion_mask[row]]
        expected = scored.score[row] * flow / flow.sum()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def planted_policy(magnet):
    """A GPT-2 in which every position attends to the token ``magnet``, if the text has one.

    Queries are constant, and only the magnet's embedding gives a large key.
    """
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config).eval()
    block = model.transformer.h[0]
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[magnet] = 0.0
        model.transformer.wte.weight[magnet, 0] = 1.0
        block.attn.c_attn.weight.zero_()
        block.attn.c_attn.bias.zero_()
        block.attn.c_attn.bias[:32] = 10.0  # queries
        block.attn.c_attn.weight[0, 32:64] = 10.0  # keys
    return model


@pytest.mark.parametrize("assigner", [PolicyAttentionCredit, PolicyLastAttentionCredit])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_policy_credit_lands_on_the_token_that_was_attended_to(assigner, place):
    """Credit on the token before or after the magnet would be off by one."""
    magnet, scored = 99, five_tokens()
    ids = scored.input_ids.clone()
    ids[0, 2 + place] = magnet
    scored = dataclasses.replace(scored, input_ids=ids)
    weights = assigner(planted_policy(magnet)).weights(scored)[0, 2:]
    assert weights[place].item() == pytest.approx(1, abs=1e-3)
    assert weights[place + 1 :].abs().max() < 1e-3


def test_no_step_attends_to_the_last_token():
    scored = five_tokens()
    scored.input_ids[0, -1] = 99
    for assigner in (PolicyAttentionCredit, PolicyLastAttentionCredit):
        assert assigner(planted_policy(99)).weights(scored)[0, -1] == 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_policy_credit_equals_a_loop_over_the_steps(language_model, reward_model, side):
    batch = Completions.from_lists(PROMPTS, COMPLETIONS)
    if side == "left":  # the second text is shorter by four tokens
        moved = {}
        for field in dataclasses.fields(batch):
            values = getattr(batch, field.name).clone()
            values[1] = values[1].roll(4)
            moved[field.name] = values
        batch = Completions(**moved)
    scored = reward_model.read(batch)
    received = PolicyAttentionCredit(language_model, layers=0, heads=1).weights(scored)
    last = PolicyLastAttentionCredit(language_model, layers=0, heads=1).weights(scored)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        attention = eager_maps(language_model, prompt, completion)[0, 1]
        start, end = len(prompt), len(prompt) + len(completion)
        expected = []
        for token in range(start, end):
            steps = [attention[writes - 1, token].item() for writes in range(token + 1, end)]
            expected.append(sum(steps) / len(steps) if steps else 0.0)
        mask = scored.completion_mask[row]
        torch.testing.assert_close(received[row][mask], torch.tensor(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            last[row][mask], attention[end - 2, start:end], atol=1e-5, rtol=0
        )


def test_a_policy_on_another_vocabulary_is_refused():
    scored = five_tokens()
    scored.input_ids[0, -1] = 100
    with pytest.raises(InvalidArgumentError, match="policy"):
        PolicyAttentionCredit(planted_policy(99))(scored)


@pytest.mark.parametrize("arguments", [{"layers": 1}, {"layers": ()}, {"heads": "sum"}])
def test_layers_that_the_policy_does_not_have_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match=r"layers|heads"):
        PolicyAttentionCredit(planted_policy(99), **arguments)
