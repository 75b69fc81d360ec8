"""Timing side by side, and the peak of memory."""

from __future__ import annotations

import time

import pytest
import torch
from harness.profiling import peak_memory
from harness.timing import Comparison, side_by_side


def test_the_ratio_is_the_median_over_rounds():
    # The machine became twice as slow in the third round, for both.
    compared = Comparison({"a": [3.0, 3.3, 6.0], "b": [1.0, 1.0, 2.0]})
    ratio, low, high = compared.ratio("a", "b")
    assert ratio == pytest.approx(3.0)
    assert (low, high) == pytest.approx((3.0, 3.3))
    assert compared.median("a") == 3.3


def test_a_single_round_has_no_interval():
    assert Comparison({"a": [3.0], "b": [2.0]}).ratio("a", "b") == (1.5, 1.5, 1.5)


def test_functions_take_turns_in_changing_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    compared = side_by_side(functions, rounds=6, min_seconds=0.0)
    assert {name: len(seconds) for name, seconds in compared.seconds.items()} == dict.fromkeys(
        "abc", 6
    )
    rounds = ["".join(calls[start : start + 3]) for start in range(3, 21, 3)]  # after the warm-up
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]


def test_the_seconds_are_those_of_one_call():
    compared = side_by_side({"sleep": lambda: time.sleep(0.01)}, rounds=3, min_seconds=0.05)
    assert 0.01 <= compared.median("sleep") < 0.05


def test_peak_memory_is_the_most_that_tensors_hold_at_one_time():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(250_000)  # 1 MB, freed at once

    def together():
        return [torch.zeros(250_000) for _ in range(3)]

    assert peak_memory(one_after_the_other) == pytest.approx(1.0, abs=0.01)
    assert peak_memory(together) == pytest.approx(3.0, abs=0.01)
