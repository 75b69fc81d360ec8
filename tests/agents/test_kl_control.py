"""Controllers of the KL penalty's weight, on their own and on a simulated plant."""

from __future__ import annotations

import math
import random

import pytest

from textgym.agents.kl_control import (
    AdaptiveKLController,
    FixedKLController,
    KLController,
    LogPIKLController,
)

TARGET, HORIZON, EPISODES = 6.0, 160.0, 16


def run_plant(
    controller: KLController, lag: float, noise: float = 0.1, num_iterations: int = 400
) -> list[float]:
    """KL of every iteration of a plant that starts at the reference policy.

    At rest the KL is 0.6 / weight. It approaches that with a lag, in the logarithm, and is measured
    with an error.
    """
    rng = random.Random(0)
    kl, course = 0.05, []
    for _ in range(num_iterations):
        kl *= (0.6 / controller.coef / kl) ** (1 / lag)
        course.append(kl)
        controller.update(kl * math.exp(noise * rng.gauss(0, 1)), EPISODES)
    return course


def settled_after(course: list[float], tolerance: float = 0.15) -> int:
    """Iterations until the KL stays within a share of the target."""
    outside = [i for i, kl in enumerate(course) if abs(kl / TARGET - 1) > tolerance]
    return outside[-1] + 1 if outside else 0


# --- On their own


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98), (-5.0, 0.98)]
)
def test_ziegler_takes_small_steps_towards_the_target(kl: float, factor: float) -> None:
    controller = AdaptiveKLController(coef=0.5, target=TARGET, horizon=HORIZON)
    controller.update(kl, EPISODES)
    assert controller.coef == pytest.approx(0.5 * factor)


def test_a_fixed_weight_is_fixed() -> None:
    controller = FixedKLController(0.5)
    controller.update(math.inf, EPISODES)
    assert controller.coef == 0.5


def test_the_weight_of_pi_follows_the_kl_at_once() -> None:
    controller = LogPIKLController(coef=0.5, target=TARGET, horizon=1e9)  # almost no integral part
    for kl, factor in ((6.0, 1.0), (9.0, 1.5), (3.0, 0.5), (600.0, math.e), (-1.0, 1 / math.e)):
        controller.update(kl, EPISODES)
        assert controller.coef == pytest.approx(0.5 * factor, rel=1e-6)


def test_the_base_of_pi_sums_the_error() -> None:
    controller = LogPIKLController(coef=0.5, target=TARGET, horizon=HORIZON)
    for _ in range(3):
        controller.update(6.0 * math.e**0.4, EPISODES)
    assert controller.base == pytest.approx(0.5 * math.exp(3 * 0.5 * 0.4 * EPISODES / HORIZON))


@pytest.mark.parametrize(
    "make", [lambda: AdaptiveKLController(0.5, TARGET, HORIZON),
             lambda: LogPIKLController(0.5, TARGET, HORIZON), lambda: FixedKLController(0.5)],
)  # fmt: skip
def test_a_controller_continues_from_its_state(make) -> None:
    whole, half = make(), make()
    for kl in (0.1, 0.5, 4.0, 9.0):
        whole.update(kl, EPISODES)
        half.update(kl, EPISODES)
    resumed = make()
    resumed.load_state_dict(half.state_dict())
    for kl in (0.2, 0.1, 40.0, 5.0):
        assert resumed.coef == whole.coef
        whole.update(kl, EPISODES)
        resumed.update(kl, EPISODES)
    assert resumed.coef == whole.coef


# --- On the plant


@pytest.mark.parametrize("lag", [5, 10, 20])
@pytest.mark.parametrize("coef", [0.02, 0.05, 0.1])  # the right one is 0.1
def test_pi_overshoots_less_than_half_as_much_as_ziegler(lag: int, coef: float) -> None:
    ziegler, pi = (
        max(run_plant(make(coef, TARGET, HORIZON), lag)) - TARGET
        for make in (AdaptiveKLController, LogPIKLController)
    )
    assert pi < 0.5 * ziegler + 0.1 * TARGET  # a tenth is the noise of the measurement


@pytest.mark.parametrize("lag", [5, 10, 20])
def test_from_the_right_weight_pi_does_not_overshoot_and_settles_sooner(lag: int) -> None:
    ziegler, pi = (
        run_plant(make(0.1, TARGET, HORIZON), lag)
        for make in (AdaptiveKLController, LogPIKLController)
    )
    assert max(pi) < 1.2 * TARGET
    assert settled_after(pi) < settled_after(ziegler)


@pytest.mark.parametrize("coef", [0.002, 0.02, 0.1, 0.5, 5.0])
def test_pi_reaches_the_target_from_any_weight(coef: float) -> None:
    course = run_plant(LogPIKLController(coef, TARGET, HORIZON), lag=10, num_iterations=1_000)
    assert sum(course[-100:]) / 100 == pytest.approx(TARGET, rel=0.05)
