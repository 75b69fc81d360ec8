"""The reference policy's value: the fit against brute force, exact values, and what it pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.theory.process import make_process, make_reward_model, make_tokenizer, random_logits
from textgym.credit import PrefixScore, ReferenceValue
from textgym.credit.reference_value import leave_one_out_explained_variance, ridge_regression
from textgym.errors import InvalidArgumentError
from textgym.exact import state_values, trajectory_probabilities
from textgym.models import Completions, PrefixScores

COEFFICIENTS = [[1.0, -0.5, 0.5], [-1.0, -0.2, 0.3]]


@pytest.fixture(scope="module")
def process():
    return make_process(make_reward_model(make_tokenizer()))


@pytest.fixture
def samples():
    """Features and targets of a regression."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((12, 3), generator=generator, dtype=torch.float64)
    return features, torch.randn(12, generator=generator, dtype=torch.float64)


def with_prefix_scores(completions, seed=0):
    """Completions with random prefix scores and scores."""
    generator = torch.Generator().manual_seed(seed)
    prefix_scores = torch.randn(completions.input_ids.shape, generator=generator)
    score = torch.randn(len(completions), generator=generator)
    return completions.with_score(score, {PrefixScores(): prefix_scores})


def texts_of_two_tokens(num_texts):
    return Completions.from_lists([[1]] * num_texts, [[2, 3]] * num_texts)


# --- The regression


def test_ridge_regression_is_least_squares_with_one_more_row_per_coefficient(samples) -> None:
    features, targets = samples
    rows = torch.cat([features, 0.7**0.5 * torch.eye(3, dtype=torch.float64)])
    padded = torch.cat([targets, torch.zeros(3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, padded[:, None]).solution[:, 0]
    torch.testing.assert_close(ridge_regression(features, targets, 0.7)[0], expected)


def test_errors_are_those_of_fits_without_the_sample(samples) -> None:
    features, targets = samples
    for i, error in enumerate(ridge_regression(features, targets, 0.7)[1]):
        others = torch.arange(len(targets)) != i
        coefficients = ridge_regression(features[others], targets[others], 0.7)[0]
        torch.testing.assert_close(error, targets[i] - features[i] @ coefficients)


# --- The fit


def test_a_value_that_is_linear_in_the_scores_is_found() -> None:
    scored = with_prefix_scores(texts_of_two_tokens(50))
    start, after_one = scored[PrefixScores()][:, 0], scored[PrefixScores()][:, 1]
    score = after_one + 1.0 - 0.5 * after_one + 0.25 * start
    scored = scored.with_score(score, scored.readouts)
    value = ReferenceValue.fit(scored, ridge=1e-9)
    torch.testing.assert_close(value.coefficients[1], torch.tensor([1.0, -0.5, 0.25]))
    torch.testing.assert_close(value(scored)[:, 1], score)
    assert leave_one_out_explained_variance(scored, ridge=1e-9)[1] == pytest.approx(1)


def test_the_fit_to_samples_approaches_the_regression_on_exact_values(process) -> None:
    logits, scored = random_logits(process, 0), process.read([PrefixScores()])
    probabilities = trajectory_probabilities(process.trajectories, logits)
    scores = np.broadcast_to(scored.score.double().numpy()[:, None], process.mask.shape)
    exact = state_values(process.trajectories, logits, scores)
    drawn = np.random.default_rng(0).choice(len(probabilities), 20_000, p=probabilities)
    fitted = ReferenceValue.fit(scored.select(torch.from_numpy(drawn)))
    for t in range(process.mask.shape[1]):
        goes_on = process.mask[:, t]
        so_far = scored[PrefixScores()].numpy()
        prompt = scored.prompt_mask.sum(1).numpy()
        rows = np.arange(len(so_far))
        start, now = so_far[rows, prompt - 1], so_far[rows, prompt - 1 + t]
        features = np.stack([np.ones_like(now), now, start], axis=1)[goes_on]
        weight = np.sqrt(probabilities[goes_on])[:, None]
        values = exact[process.trajectories.states[goes_on, t]]
        best = np.linalg.lstsq(weight * features, weight[:, 0] * values, rcond=1e-6)[0]
        found = fitted.coefficients[t].numpy() + np.array([0, 1, 0])
        assert np.abs(features @ (found - best)).max() < 0.25 * values.std()
        assert values.std() > 0.1  # there is something to find


def test_a_large_penalty_leaves_the_prefix_score(process) -> None:
    scored = process.read([PrefixScores()])
    potential = ReferenceValue.fit(scored, ridge=1e12)(scored)
    torch.testing.assert_close(potential, PrefixScore()(scored), atol=1e-5, rtol=0)


def test_completions_that_have_ended_do_not_teach_later_values() -> None:
    texts = Completions.from_lists([[1]] * 40, [[2, 3]] * 20 + [[2]] * 20)
    scored = with_prefix_scores(texts)
    longer = scored.select(slice(0, 20))
    both, alone = ReferenceValue.fit(scored), ReferenceValue.fit(longer)
    torch.testing.assert_close(both.coefficients[1], alone.coefficients[1])
    assert not torch.allclose(both.coefficients[0], alone.coefficients[0])


def test_explained_variance_is_low_for_noise_and_zero_for_equal_scores() -> None:
    scored = with_prefix_scores(texts_of_two_tokens(200))
    assert leave_one_out_explained_variance(scored).max() < 0.05
    equal = scored.with_score(torch.ones(200), scored.readouts)
    assert leave_one_out_explained_variance(equal).tolist() == [0, 0]


# --- The potential


def test_the_potential_is_the_formula_whatever_the_padding(ragged, ragged_left) -> None:
    scored = with_prefix_scores(ragged)
    scores = torch.nn.functional.pad(scored[PrefixScores()], (2, 0), value=9.0)
    padded = ragged_left.with_score(scored.score, {PrefixScores(): scores})
    value = ReferenceValue(COEFFICIENTS)
    expected, starts = torch.zeros(scored.input_ids.shape), []
    for row, (valid, generated) in enumerate(
        zip(scored.attention_mask, scored.completion_mask, strict=True)
    ):
        first = int(valid.sum() - generated.sum())
        s = scored[PrefixScores()][row]
        start = s[first - 1]
        starts.append(start + 1.0 - 0.5 * start + 0.5 * start)
        for column in range(first, int(valid.sum())):  # after every number of tokens from 1 on
            expected[row, column] = s[column] - 1.0 - 0.2 * s[column] + 0.3 * start
    torch.testing.assert_close(value(scored), expected)
    torch.testing.assert_close(value(padded)[:, 2:], expected)
    torch.testing.assert_close(value.start_values(scored), torch.stack(starts))
    torch.testing.assert_close(value.start_values(padded), torch.stack(starts))


def test_a_saved_value_is_the_same_after_loading(tmp_path) -> None:
    value = ReferenceValue(COEFFICIENTS)
    value.save(tmp_path / "new folder" / "value.safetensors")
    loaded = ReferenceValue.load(tmp_path / "new folder" / "value.safetensors")
    assert torch.equal(loaded.coefficients, value.coefficients)


@pytest.mark.parametrize("content", ["nothing", "text", "other tensors"])
def test_other_files_are_refused(tmp_path, content) -> None:
    path = tmp_path / "value.safetensors"
    if content == "text":
        path.write_text("coefficients")
    elif content == "other tensors":
        save_file({"coefficients": torch.zeros((1, 3))}, path)
    with pytest.raises(InvalidArgumentError, match="path"):
        ReferenceValue.load(path)


@pytest.mark.parametrize(
    "coefficients", [[[1.0, 2.0]], [1.0, 2.0, 3.0], torch.zeros((0, 3)), [[0.0, 0.0, float("nan")]]]
)
def test_impossible_coefficients_are_refused(coefficients) -> None:
    with pytest.raises(InvalidArgumentError, match="coefficients"):
        ReferenceValue(coefficients)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_penalties_are_refused(ridge) -> None:
    with pytest.raises(InvalidArgumentError, match="ridge"):
        ReferenceValue.fit(with_prefix_scores(texts_of_two_tokens(3)), ridge)


def test_there_must_be_a_completion_to_learn_from() -> None:
    scored = with_prefix_scores(Completions.from_lists([[1]], [[]]))
    with pytest.raises(InvalidArgumentError, match="at least one completion"):
        ReferenceValue.fit(scored)
