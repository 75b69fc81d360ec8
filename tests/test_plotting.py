import numpy as np
import pytest
from PIL import Image

from textgym.errors import InvalidArgumentError
from textgym.plotting import plot_learning_curves, trailing_mean


def test_trailing_mean_is_a_mean_of_the_last_values():
    values = np.arange(9.0) ** 2
    expected = [values[i - 2 : i + 1].mean() for i in range(2, 9)]
    np.testing.assert_allclose(trailing_mean(values, 3), expected)
    np.testing.assert_allclose(trailing_mean([1.0, 2.0], 5), [1.5])
    with pytest.raises(InvalidArgumentError, match="values"):
        trailing_mean([], 5)


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
        plot_learning_curves({str(i): rows(3) for i in range(5)}, path, "five runs")
    assert not path.exists()
