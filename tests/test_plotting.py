import numpy as np
import pytest
from PIL import Image
from scipy import stats

from textgym.errors import InvalidArgumentError
from textgym.plotting import (
    draw_curves,
    first_reached,
    mean_interval,
    new_figure,
    plot_learning_curves,
    to_svg,
    trailing_mean,
)


def test_trailing_mean_is_a_mean_of_the_last_values():
    values = np.arange(9.0) ** 2
    expected = [values[i - 2 : i + 1].mean() for i in range(2, 9)]
    np.testing.assert_allclose(trailing_mean(values, 3), expected)
    np.testing.assert_allclose(trailing_mean([1.0, 2.0], 5), [1.5])
    with pytest.raises(InvalidArgumentError, match="values"):
        trailing_mean([], 5)


def test_the_point_at_which_a_trailing_mean_reaches_a_score():
    scores = [0.0, 2.0, 0.0, 4.0, 4.0, 9.0]
    assert first_reached(scores, 2.0, 1) == 2
    assert first_reached(scores, 2.0, 2) == 4
    assert first_reached(scores, 4.0, 2) == 5
    assert first_reached(scores, 7.0, 2) is None
    assert first_reached(scores[:2], 1.0, 5) == 2  # fewer scores than the window


def rows(num_iterations):
    return [
        {"time/iteration": i + 1, "rollout/score_mean": float(i), "rollout/kl": 0.1 * i}
        for i in range(num_iterations)
    ]


def test_four_runs_have_four_colours(tmp_path):
    path = tmp_path / "curves.png"
    plot_learning_curves({str(i): rows(3 + i) for i in range(4)}, path, "four runs")
    with Image.open(path) as picture:
        colours = {rgb for _, rgb in picture.convert("RGB").getcolors(1 << 24)}
    assert {
        (0x00, 0x72, 0xB2),
        (0xE6, 0x9F, 0x00),
        (0x00, 0x9E, 0x73),
        (0xCC, 0x79, 0xA7),
    } <= colours


def test_more_runs_than_lines_that_can_be_told_apart(tmp_path):
    path = tmp_path / "curves.png"
    with pytest.raises(InvalidArgumentError, match="runs"):
        plot_learning_curves({str(i): rows(3) for i in range(9)}, path, "nine runs")
    assert not path.exists()


@pytest.mark.parametrize("num_runs", [2, 3, 5, 11, 12, 30, 200])
def test_intervals_are_those_of_students_t(num_runs):
    runs = np.random.default_rng(0).normal(size=(num_runs, 4))
    mean, half = mean_interval(runs)
    np.testing.assert_allclose(mean, runs.mean(axis=0))
    expected = stats.t.ppf(0.975, num_runs - 1) * stats.sem(runs, axis=0)
    np.testing.assert_allclose(half, expected, rtol=1e-3)


def test_one_run_says_nothing_about_others():
    mean, half = mean_interval([[1.0, 2.0]])
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(half).all()


def test_a_group_is_drawn_as_far_as_all_of_its_runs_have_come():
    axes = new_figure(4, 3).subplots()
    draw_curves(axes, {"a": [[1.0, 2.0, 3.0], [3.0, 4.0]], "none yet": [[]]}, "score", window=1)
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]
    assert drawn == [([1, 2], [2.0, 3.0]), ([1, 2], [1.0, 2.0]), ([1, 2], [3.0, 4.0])]
    assert len(axes.collections) == 1  # the band


def test_a_run_that_has_only_begun_does_not_hide_the_others_of_its_group():
    axes = new_figure(4, 3).subplots()
    draw_curves(axes, {"a": [[1.0, 2.0], [3.0, 4.0], []]}, "score", window=1)
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        [2.0, 3.0],
        [1.0, 2.0],
        [3.0, 4.0],
    ]


def test_a_single_run_has_no_band():
    axes = new_figure(4, 3).subplots()
    draw_curves(axes, {"a": [[1.0, 5.0, 3.0]]}, "score", window=2)
    faint, strong = axes.lines
    assert faint.get_ydata().tolist() == [1.0, 5.0, 3.0]
    assert (strong.get_xdata().tolist(), strong.get_ydata().tolist()) == ([2, 3], [3.0, 4.0])
    assert not axes.collections


def test_values_that_are_missing_leave_gaps():
    axes = new_figure(4, 3).subplots()
    draw_curves(axes, {"a": [[1.0, float("nan"), 3.0]], "b": [[float("nan")]]}, "loss", window=1)
    low, high = axes.get_ylim()
    assert low < 1.0 < 3.0 < high


def test_equal_figures_give_equal_svg():
    def drawn():
        figure = new_figure(4, 3)
        draw_curves(figure.subplots(), {"a": [[1.0, 5.0, 3.0]]}, "score")
        return to_svg(figure)

    assert drawn() == drawn()
    assert "<svg" in drawn()
