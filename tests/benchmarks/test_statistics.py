"""Statistics of runs, against closed forms and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, ttest_1samp, ttest_rel

from textgym.benchmark.statistics import (
    Estimate,
    bootstrap_mean,
    holm,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
    stratified_bootstrap,
    student_half_width,
)
from textgym.errors import InvalidArgumentError

RNG = np.random.default_rng(0)


def test_the_interquartile_mean_drops_a_quarter_at_either_end():
    assert interquartile_mean([100, 2, 3, 4, 5, 6, 7, -50]) == (3 + 4 + 5 + 6) / 4
    matrix = RNG.normal(size=(9, 3))
    middle = np.sort(matrix, axis=None)[6:-6]  # 27 // 4 = 6
    assert interquartile_mean(matrix) == pytest.approx(middle.mean())


def test_of_three_scores_none_is_dropped():
    assert interquartile_mean([1.0, 2.0, 9.0]) == 4.0


def test_runs_are_drawn_anew_within_each_task():
    # Every run of a task has the same score, so the statistic cannot vary between samples. It would
    # if runs were drawn from all tasks together.
    scores = np.tile([0.0, 1.0, 5.0], (6, 1))
    assert stratified_bootstrap(scores) == (interquartile_mean(scores),) * 3


def test_the_interval_of_one_task_is_that_of_resampled_runs():
    scores = RNG.normal(size=40)
    samples = RNG.choice(scores, (20_000, 40))
    means = np.sort(samples, axis=1)[:, 10:30].mean(1)
    estimate = stratified_bootstrap(scores, num_samples=5_000)
    assert estimate.value == interquartile_mean(scores)
    assert estimate[1:] == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.03)


def test_a_paired_difference_is_students_paired_test():
    first, second = RNG.normal(size=(2, 6))
    expected = ttest_rel(first, second)
    difference = paired_difference(first, second)
    assert difference[:3] == pytest.approx(
        ((first - second).mean(), *expected.confidence_interval(0.95))
    )
    assert difference.p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("num_runs", [3, 5, 10])
def test_95_in_100_intervals_of_a_difference_hold_the_truth(num_runs):
    samples = np.random.default_rng(1).normal(0.3, 1.0, size=(4_000, num_runs))
    found = [paired_difference(one, np.zeros(num_runs)) for one in samples]
    assert np.mean([one.low < 0.3 < one.high for one in found]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("num_runs", "covered"), [(3, 0.74), (5, 0.90), (10, 0.94)])
def test_the_bootstrap_of_few_runs_is_too_narrow(num_runs, covered):
    samples = np.random.default_rng(1).normal(0.3, 1.0, size=(400, num_runs))
    found = [stratified_bootstrap(one, num_samples=500) for one in samples]
    assert np.mean([one.low < 0.3 < one.high for one in found]) == pytest.approx(covered, abs=0.04)


def test_equal_seeds_cancel_in_a_paired_difference():
    seeds = np.linspace(-100, 100, 10).reshape(5, 2)
    assert paired_difference(seeds + 0.5, seeds) == (0.5, 0.5, 0.5, 0.0)
    assert paired_difference(seeds, seeds) == (0.0, 0.0, 0.0, 1.0)


def test_a_single_pair_has_neither_interval_nor_p():
    difference = paired_difference([2.0], [1.5])
    assert difference.value == 0.5
    assert np.isnan(difference[1:]).all()


def test_a_difference_over_tasks_is_that_of_each_runs_mean():
    first, second = RNG.normal(size=(2, 7, 3))
    expected = paired_difference(first.mean(1), second.mean(1))
    assert paired_difference(first, second) == pytest.approx(expected)


def test_holms_p_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([np.nan, 0.02, 0.04]) == pytest.approx([np.nan, 0.04, 0.04], nan_ok=True)
    assert holm([]).size == 0


def test_the_probability_of_improvement_is_mann_whitneys_u():
    first, second = RNG.integers(0, 6, 12), RNG.integers(1, 7, 9)  # with ties
    u = mannwhitneyu(first, second).statistic
    assert probability_of_improvement(first, second) == pytest.approx(u / (12 * 9))


def test_the_probability_of_improvement_is_a_mean_over_tasks():
    better, worse = np.array([[2.0, 0.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [1.0, 3.0]])
    assert probability_of_improvement(better[:, :1], worse[:, :1]) == 1.0
    assert probability_of_improvement(better[:, 1:], worse[:, 1:]) == 0.0
    assert probability_of_improvement(better, worse) == 0.5
    assert probability_of_improvement(better, better) == 0.5


def test_the_bootstrap_of_many_values_is_the_normal_interval():
    values = RNG.normal(3.0, 2.0, size=2_000)
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 2_000**0.5, rel=0.1)


def test_equal_values_have_no_interval():
    assert bootstrap_mean([0.1] * 7) == (0.1, 0.1, 0.1)


def test_a_single_value_has_no_interval():
    value, low, high = bootstrap_mean([0.1])
    assert value == 0.1
    assert np.isnan([low, high]).all()


def test_students_interval():
    values = RNG.normal(size=5)
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    assert student_half_width(values) == pytest.approx((interval.high - interval.low) / 2)
    assert np.isnan(student_half_width([1.0]))


def test_a_single_run_has_no_interval():
    value, low, high = stratified_bootstrap([2.0])
    assert value == 2.0
    assert np.isnan([low, high]).all()


def test_an_estimate_is_shown_with_its_interval_if_it_has_one():
    assert (
        str(Estimate(0.5, 0.25, 1.0)) == f"{Estimate(0.5, 0.25, 1.0)}" == "+0.50 (+0.25 to +1.00)"
    )
    assert f"{Estimate(0.5, 0.25, 1.0):.0%}" == "50% (25% to 100%)"
    assert str(paired_difference([2.0], [1.5])) == "+0.50"


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], np.zeros((2, 2, 2))])
def test_what_is_no_matrix_of_numbers_is_refused(scores):
    with pytest.raises(InvalidArgumentError, match="finite numbers of shape"):
        interquartile_mean(scores)


@pytest.mark.parametrize("function", [bootstrap_mean, student_half_width])
@pytest.mark.parametrize("values", [[], [1.0, np.nan], np.zeros((3, 2))])
def test_what_is_no_row_of_numbers_is_refused(function, values):
    with pytest.raises(InvalidArgumentError, match=r"finite numbers of shape \(num_values,\)"):
        function(values)


@pytest.mark.parametrize("p_values", [0.5, [[0.5]], [0.5, 1.5], [-0.1]])
def test_what_are_no_p_values_is_refused(p_values):
    with pytest.raises(InvalidArgumentError, match="from 0 to 1, or NaN"):
        holm(p_values)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(InvalidArgumentError, match="pairs need the shape"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InvalidArgumentError, match="as many tasks"):
        probability_of_improvement(np.zeros((3, 2)), np.zeros((3, 1)))
