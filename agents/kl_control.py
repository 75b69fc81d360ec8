"""Controllers of the KL penalty's weight: what the policy pays for a nat of KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

__all__ = [
    "KL_CONTROLLERS",
    "MOST_RELATIVE_ERROR",
    "AdaptiveKLController",
    "FixedKLController",
    "KLController",
    "LogPIKLController",
    "make_kl_controller",
]

MOST_RELATIVE_ERROR = 0.2
"""Where Ziegler et al. cut off the relative error of the KL."""


class KLController(Protocol):
    """Chooses the weight of the KL penalty. Pass an object of your own as ``kl_controller``.

    Attributes:
        coef: The weight in the next iteration.
    """

    coef: float

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight to the mean KL per episode, measured on ``num_episodes`` episodes.

        Args:
            kl: In nats; an estimate, which may be negative.
            num_episodes: Number of episodes of the iteration.
        """

    def state_dict(self) -> dict[str, float]:
        """What changes in training, for checkpoints and to undo an interrupted iteration."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from a state that :meth:`state_dict` gave."""


class FixedKLController:
    """Keeps the weight.

    Args:
        coef: The weight.
    """

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, num_episodes: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        """The weight."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the weight."""
        self.coef = state["coef"]


class AdaptiveKLController(FixedKLController):
    """Moves the weight in small steps until the KL is at its target.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2: each update multiplies the weight by
    1 + K·clip(KL / target − 1, −0.2, 0.2). The paper uses K = 0.1. Here K is
    ``num_episodes / horizon``, so the speed does not depend on the number of episodes per update.

    The weight only ever follows the sum of past errors. So the KL overshoots its target, by more
    the longer the weight takes to act: it goes on rising while the weight catches up, and is then
    pulled back below the target.

    Args:
        coef: The initial weight.
        target: KL per episode in nats.
        horizon: Number of episodes in which the weight can rise or fall by at most about a fifth;
            above a fifth of the episodes of an update, or the weight may turn negative.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight."""
        error = min(max(kl / self.target - 1, -MOST_RELATIVE_ERROR), MOST_RELATIVE_ERROR)
        self.coef *= 1 + error * num_episodes / self.horizon


class LogPIKLController:
    """A proportional-integral controller of the logarithm of the weight.

    With the error e = log(KL / target), limited to ±1, each update first moves a base, then sets
    the weight from it:

        log base += ½ · e · num_episodes / horizon
        log coef  = log base + e

    The proportional part, e in the second line, answers at once: the weight rises and falls with
    the KL. So the penalty pushes back before the KL has reached its target. The integral part, the
    base, moves slowly until the error is 0. While the error is at its limit and the KL is on its
    way to the target, as at the start of training, the base waits. Otherwise it would run far off
    on the way, and the KL would overshoot (integrator windup; Åström & Hägglund 2006, "Advanced PID
    Control", section 3.5).

    Args:
        coef: The initial base: the weight that is expected to hold the KL at its target. The
            initial weight is 1/e of it, because the KL is 0 then.
        target: KL per episode in nats.
        horizon: Number of episodes in which the base can rise or fall by a factor of √e, at most.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        self.target, self.horizon = target, horizon
        self.base, self.last_kl = coef, 0.0
        self.coef = coef * math.exp(self._error(0.0))

    def update(self, kl: float, num_episodes: int) -> None:
        """Adapt the weight."""
        error = self._error(kl)
        is_approaching = (kl - self.last_kl) * error < 0
        if abs(error) < 1 or not is_approaching:
            self.base *= math.exp(0.5 * error * num_episodes / self.horizon)
        self.coef = self.base * math.exp(error)
        self.last_kl = kl

    def state_dict(self) -> dict[str, float]:
        """Everything that changes."""
        return {"base": self.base, "last_kl": self.last_kl, "coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take it over."""
        self.base, self.last_kl, self.coef = state["base"], state["last_kl"], state["coef"]

    def _error(self, kl: float) -> float:
        ratio = max(kl / self.target, math.exp(-1))  # The logarithm needs a positive number.
        return min(math.log(ratio), 1.0)


KL_CONTROLLERS: dict[str, Callable[[float, float, float], KLController]] = {
    "ziegler": AdaptiveKLController,
    "pi": LogPIKLController,
}
"""Controllers by name, made from the initial weight, the target and the horizon."""


def make_kl_controller(
    name: str, coef: float, target: float | None, horizon: float
) -> KLController:
    """The controller of this name; a fixed weight if there is no target."""
    return (
        FixedKLController(coef) if target is None else KL_CONTROLLERS[name](coef, target, horizon)
    )
