from __future__ import annotations

import math

import pytest

from textgym.agents.kl import AdaptiveKLController


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98), (-5.0, 0.98)]
)
def test_kl_controller_steers_towards_its_target(kl: float, factor: float) -> None:
    controller = AdaptiveKLController(coef=0.5, target=6.0, horizon=160)
    controller.update(kl, num_episodes=16)
    assert controller.coef == pytest.approx(0.5 * factor)


def test_kl_controller_without_target_is_fixed() -> None:
    controller = AdaptiveKLController(coef=0.5, target=None, horizon=160)
    controller.update(math.inf, num_episodes=16)
    assert controller.coef == 0.5
