"""Timing side by side, and the peak of memory.

A machine that is warm, or busy with something else, is slower for a while. What is to be compared
is therefore run in turn, many times over, and each round gives a ratio of its own: what slows down
a whole round slows down both sides of it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["Comparison", "peak_memory", "quiet_profile", "result", "side_by_side"]

# The profiler's library writes a line to stderr whenever it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


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
        """How many times as long one takes as the other.

        Args:
            a: Name of the numerator.
            b: Name of the denominator.

        Returns:
            Median over rounds of time(a) / time(b), and the bounds of its 95% interval: percentiles
            of the medians of 10,000 bootstrap samples of the rounds. Of a single round all three
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

    Every round runs each of them, repeated until ``min_seconds`` are full; the number of repeats is
    chosen once, by the last call of the warm-up. The order rotates, and every other round runs
    backwards, so that neither a place nor a predecessor favours anyone. Garbage is collected before
    each of them and not while one runs, as :mod:`timeit` does.

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
    gc.freeze()  # What is there already need not be looked through before every call.
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
    with _no_garbage_collection():
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - start) / repeats


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def quiet_profile(**keywords: Any) -> profile:
    """A profiler of the processor."""
    return profile(activities=[ProfilerActivity.CPU], **keywords)


def peak_memory(function: Callable[[], object]) -> float:
    """The most memory that tensors take at any one time during a call, beyond those at its start.

    PyTorch's profiler notes each block that its allocator hands out or takes back. The largest
    running sum is exact and the same in every run: it does not depend on what the C library returns
    to the system, on what an earlier call has left behind, or on the size of the model, as the peak
    of the resident memory would. Scratch memory inside of a matrix product is not in it; it is the
    same for all who call that product.

    Args:
        function: What is called, once; what it sets up at its first call should be there already.

    Returns:
        Megabytes (10⁶ bytes).
    """
    with _no_garbage_collection(), quiet_profile(profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    blocks = [event for event in events if event.get("name") == "[memory]"]
    # The trace has them in order, and the clock may give two of them one time: a stable sort.
    blocks.sort(key=lambda event: event["ts"])
    sizes = [event["args"]["Bytes"] for event in blocks]
    return max(0.0, float(np.cumsum(sizes).max(initial=0))) / 1e6


def result(
    part: str,
    case: str,
    quantity: str,
    ratio: tuple[float, float, float],
    goal: str | None = None,
    **detail: Any,
) -> dict[str, Any]:
    """One measurement, in the form that all parts share.

    Args:
        part: Which part it belongs to.
        case: What was measured.
        quantity: What the ratio is of.
        ratio: The ratio, and the bounds of its interval.
        goal: What it should be, such as "<= 1.02".
        **detail: Raw numbers, JSON values.
    """
    value, low, high = ratio
    detail["threads"] = torch.get_num_threads()
    return {
        "part": part,
        "case": case,
        "quantity": quantity,
        "ratio": round(value, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "goal": goal,
        "detail": detail,
    }
