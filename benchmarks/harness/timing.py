"""Timing side by side.

A machine that is warm, or busy with something else, is slower for a while. So the things to be
compared take turns, many times over, and each round gives a ratio of its own: whatever slows down a
round slows down both sides of it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Comparison", "Stopwatch", "no_garbage_collection", "side_by_side"]


@dataclass(frozen=True)
class Comparison:
    """Times of several functions in interleaved rounds.

    Attributes:
        seconds: By name, seconds per call in each round, (num_rounds,).
    """

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds per call, the median over rounds."""
        return float(np.median(self.seconds[name]))

    def ratio(self, a: str, b: str) -> tuple[float, float, float]:
        """How many times as long one function takes as the other.

        Args:
            a: Name of the numerator.
            b: Name of the denominator.

        Returns:
            Median over rounds of time(a) / time(b), and the bounds of its 95% interval: percentiles
            of the medians of 10,000 bootstrap samples of the rounds. With a single round all three
            are its ratio.
        """
        ratios = np.array(self.seconds[a]) / np.array(self.seconds[b])  # (num_rounds,)
        samples = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.percentile(np.median(samples, axis=1), (2.5, 97.5))
        return float(np.median(ratios)), float(low), float(high)


def side_by_side(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    min_seconds: float = 0.2,
) -> Comparison:
    """Time functions in turn.

    Every round runs each function, repeated for ``min_seconds``; the last call of the warm-up
    decides how many repeats that takes. The order rotates, and every other round runs backwards, so
    no function always has the same place or predecessor. Garbage is collected before each function
    and not while it runs, as :mod:`timeit` does.

    Args:
        functions: What to time, by name.
        rounds: Number of rounds.
        warmup: Calls of each before the first round, at least one.
        min_seconds: How long each runs in each round, at least; 0 for one call.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    repeats = {}
    gc.collect()
    gc.freeze()  # Collections before each call need not look at what exists already.
    try:
        for name, function in functions.items():
            last = [_seconds(function, 1) for _ in range(max(1, warmup))][-1]
            repeats[name] = max(1, math.ceil(min_seconds / last))
        for number in range(rounds):
            start = number // 2 % len(names)
            order = names[start:] + names[:start]
            for name in order[:: -1 if number % 2 else 1]:
                seconds[name].append(_seconds(functions[name], repeats[name]))
    finally:
        gc.unfreeze()
    return Comparison(seconds)


def _seconds(function: Callable[[], object], repeats: int) -> float:
    """Seconds per call."""
    with no_garbage_collection():
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - start) / repeats


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not inside of the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Stopwatch:
    """A function that adds up the seconds of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function."""
        start = time.perf_counter()
        try:
            return self._function(*arguments, **keywords)
        finally:
            self.seconds += time.perf_counter() - start
