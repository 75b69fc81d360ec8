"""Checks of arguments."""

from __future__ import annotations

import numpy as np
import pytest

from textgym.checks import check_whole_number
from textgym.credit import RandomCredit, ShapleyCredit, ShuffledAttentionCredit
from textgym.errors import InvalidArgumentError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_may_come_from_numpy(value):
    checked = check_whole_number("number", value, 1, 3)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize("value", [0, 4, 2.0, True, "3", None])
def test_other_values_are_refused_with_the_limits(value):
    with pytest.raises(InvalidArgumentError, match=r"number=.* at least 1 and at most 3"):
        check_whole_number("number", value, 1, 3)


@pytest.mark.parametrize("assigner", [RandomCredit, ShuffledAttentionCredit, ShapleyCredit])
def test_every_seed_is_checked_alike(assigner):
    assert assigner(seed=np.int64(3)).seed == 3
    for seed in (-1, 0.5, True):
        with pytest.raises(InvalidArgumentError, match="seed"):
            assigner(seed=seed)
