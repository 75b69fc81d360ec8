"""Credit by gradients against finite differences, closed forms and completeness."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from tests.credit.additive import AdditiveRewardModel
from textgym.credit import gradients
from textgym.credit.gradients import (
    GradientTimesInputCredit,
    IntegratedGradientsCredit,
    mean_embedding,
)
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.models import Completions

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
ASSIGNERS = [GradientTimesInputCredit(gamma=0.9), IntegratedGradientsCredit(gamma=0.9, num_steps=4)]
WORTH = torch.tensor([0.5, 3.0, 0.5, -1.0, 2.0, 0.25])


def read(reward_model, batch, assigner):
    return reward_model.read(batch, assigner.readouts)


@torch.no_grad()
def baseline_score(reward_model, prompt, num_tokens, baseline):
    """Score of a prompt followed by baseline embeddings."""
    start = reward_model.embed(torch.tensor([prompt]))
    embeddings = torch.cat([start, baseline.expand(1, num_tokens, -1)], dim=1)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
    return reward_model.score_embeddings(embeddings, mask)[0]


def test_gradient_times_input_is_the_response_to_a_longer_embedding(reward_model):
    """Σ_d e_td ∂R/∂e_td is the derivative with respect to a factor on token t's embedding."""
    batch = Completions.from_lists([[1, 40]], [[50, 60, 2]])
    attributions = GradientTimesInputCredit().attributions(
        read(reward_model, batch, GradientTimesInputCredit())
    )
    step = 3e-2
    differences = []
    with torch.no_grad():
        embeddings = reward_model.embed(batch.input_ids)
        for t in range(2, 5):
            change = torch.zeros_like(embeddings)
            change[0, t] = step * embeddings[0, t]
            up = reward_model.score_embeddings(embeddings + change, batch.attention_mask)
            down = reward_model.score_embeddings(embeddings - change, batch.attention_mask)
            differences.append((up - down)[0] / (2 * step))
    torch.testing.assert_close(attributions[0, 2:], torch.stack(differences), atol=1e-4, rtol=0)
    assert attributions[0, 2:].abs().min() > 2e-3


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_integrated_gradients_of_a_sum_are_what_the_tokens_are_worth(baseline):
    """Beyond the baseline, which is worth the mean of the vocabulary, or nothing."""
    batch = Completions.from_lists([[1, 2], [3]], [[2, 3, 4], [5]])
    integrated = IntegratedGradientsCredit(num_steps=3, baseline=baseline)
    attributions = integrated.attributions(AdditiveRewardModel(WORTH).read(batch))
    start = WORTH.mean() if baseline == "mean" else 0.0
    expected = (WORTH[batch.input_ids] - start) * batch.completion_mask
    torch.testing.assert_close(attributions, expected)


class SquaredSum(AdditiveRewardModel):
    """Score (Σ_t w_t)², where tokens matter to each other."""

    def score_embeddings(self, embeddings, attention_mask):
        return super().score_embeddings(embeddings, attention_mask).square()


def test_integrated_gradients_of_a_squared_sum_are_those_of_the_integral():
    """With the prompt's sum P and the completion's C: ∫ 2(P + αC) w_t dα = (2P + C) w_t."""
    batch = Completions.from_lists([[1, 3]], [[2, 3, 4]])
    integrated = IntegratedGradientsCredit(num_steps=2, baseline="zero")
    attributions = integrated.attributions(SquaredSum(WORTH).read(batch))[0, 2:]
    torch.testing.assert_close(attributions, (2 * 2.0 + 1.5) * torch.tensor([0.5, -1.0, 2.0]))


def test_integrated_gradients_sum_to_the_score_minus_that_of_the_baseline(reward_model):
    prompts, completions = [[1, 40], [1], [1, 41, 42]], [[50, 60, 2], [70], [80, 33, 80, 90, 2]]
    scored = reward_model.read(Completions.from_lists(prompts, completions))
    mean = reward_model.model.get_input_embeddings().weight.detach().mean(0)
    start = [
        baseline_score(reward_model, prompt, len(completion), mean)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    attributions = IntegratedGradientsCredit(num_steps=64).attributions(scored)
    expected = scored.score - torch.stack(start)
    torch.testing.assert_close(attributions.sum(1), expected, atol=2e-3, rtol=2e-3)
    assert expected.abs().min() > 1e-2
    assert attributions[~scored.completion_mask].eq(0).all()


def test_the_mean_embedding_is_that_of_the_table(reward_model):
    table = reward_model.model.get_input_embeddings().weight
    torch.testing.assert_close(mean_embedding(reward_model), table.detach().mean(0))


def test_declared_passes_of_gradient_times_input(reward_model, ragged, passes):
    """The pass that scores is the one that is differentiated: none is added."""
    assigner = GradientTimesInputCredit()
    assigner(read(reward_model, ragged, assigner))
    assert passes.forward == len(ragged)
    assert assigner.forward_passes(5) == 0
    assert passes.backward == len(ragged) * assigner.backward_passes(5) == 3


def test_declared_passes_of_integrated_gradients(reward_model, ragged, passes):
    scored = reward_model.read(ragged)
    passes.forward = 0
    assigner = IntegratedGradientsCredit(num_steps=7)
    assigner(scored)
    assert passes.forward == len(ragged) * assigner.forward_passes(5) == 21
    assert passes.backward == len(ragged) * assigner.backward_passes(5) == 21


@pytest.mark.parametrize("internal_batch_size", [1, 2, 7])
def test_the_rows_of_a_pass_are_bounded_and_change_nothing(
    reward_model, ragged, passes, internal_batch_size
):
    scored = reward_model.read(ragged)
    whole = IntegratedGradientsCredit(num_steps=5)(scored)
    passes.largest = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = IntegratedGradientsCredit(num_steps=5, internal_batch_size=internal_batch_size)
        torch.testing.assert_close(parts(scored), whole, **CLOSE)
    assert passes.largest <= internal_batch_size


@pytest.mark.parametrize("assigner", ASSIGNERS, ids=lambda assigner: assigner.name)
def test_padding_batch_size_and_order_change_nothing(reward_model, ragged, ragged_left, assigner):
    credit = assigner(read(reward_model, ragged, assigner))
    padded = assigner(read(reward_model, ragged_left, assigner))
    torch.testing.assert_close(padded[:, 2:], credit, **CLOSE)
    for row in (2, 0, 1):
        alone = assigner(read(reward_model, ragged.select(slice(row, row + 1)), assigner))
        torch.testing.assert_close(alone[0], credit[row], **CLOSE)


@pytest.mark.parametrize("assigner", ASSIGNERS, ids=lambda assigner: assigner.name)
def test_credit_carries_no_graph_and_leaves_no_gradient(reward_model, ragged, assigner):
    with torch.no_grad():
        credit = assigner(read(reward_model, ragged, assigner))
    torch.testing.assert_close(credit, assigner(read(reward_model, ragged, assigner)))
    assert not credit.requires_grad
    assert all(parameter.grad is None for parameter in reward_model.model.parameters())


def test_captum_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(gradients, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"textgym\[attribution\]"):
        IntegratedGradientsCredit()


def test_a_batch_of_unknown_origin_is_refused(reward_model, ragged):
    scored = dataclasses.replace(reward_model.read(ragged), reward_model=None)
    with pytest.raises(InvalidArgumentError, match="reward_model"):
        IntegratedGradientsCredit()(scored)


def test_a_gradient_that_was_not_read_out_is_refused(reward_model, ragged):
    with pytest.raises(InvalidArgumentError, match="not requested"):
        GradientTimesInputCredit()(reward_model.read(ragged))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_steps": 0},
        {"num_steps": 8.0},
        {"baseline": "pad"},
        {"internal_batch_size": 0},
        {"beta": -0.1},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(InvalidArgumentError, match=next(iter(arguments))):
        IntegratedGradientsCredit(**arguments)
