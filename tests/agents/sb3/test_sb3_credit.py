from __future__ import annotations

import numpy as np
import pytest

from textgym.agents.sb3.credit import credit_of, rewards_of_the_rest
from textgym.errors import InvalidArgumentError

CREDIT = np.array([0.1, 0.2, 0.3, 0.2, 0.2], dtype=np.float32)


def test_a_whole_episode_gets_its_credit():
    paid = np.array([0, 0, 0, 0, 1], dtype=np.float32)
    np.testing.assert_array_equal(rewards_of_the_rest(paid, CREDIT, gamma=1.0), CREDIT)
    np.testing.assert_array_equal(rewards_of_the_rest(paid, CREDIT, gamma=0.9), CREDIT)


def test_the_first_step_at_hand_gets_the_credit_of_the_lost_ones():
    paid = np.array([0, 0, 1], dtype=np.float32)
    rewards = rewards_of_the_rest(paid, CREDIT, gamma=1.0)
    np.testing.assert_allclose(rewards, [0.6, 0.2, 0.2], atol=1e-7)


def test_what_the_lost_steps_were_paid_is_not_paid_again():
    # Five steps that paid .05 each and 1 at the end: the lost two had .1, of a credit of .3.
    paid = np.array([0.05, 0.05, 1.05], dtype=np.float32)
    credit = CREDIT * 1.25  # sums to what was paid
    rewards = rewards_of_the_rest(paid, credit, gamma=1.0)
    np.testing.assert_allclose(rewards[0], credit[2] + credit[0] + credit[1] - 0.1, atol=1e-6)


def test_the_discounted_return_from_the_first_step_at_hand_is_what_was_paid():
    paid = np.array([0.5, 0, 1], dtype=np.float32)
    rewards = rewards_of_the_rest(paid, CREDIT, gamma=0.5)
    np.testing.assert_allclose(rewards[1:], [0.2, 0.2])
    assert rewards @ [1, 0.5, 0.25] == pytest.approx(0.5 + 0.25)


def test_the_credit_handed_over_is_left_as_it_was():
    before = CREDIT.copy()
    rewards_of_the_rest(np.zeros(2, dtype=np.float32), CREDIT, gamma=1.0)
    np.testing.assert_array_equal(CREDIT, before)


def test_an_episode_cut_short_may_come_without_credit():
    assert credit_of({"TimeLimit.truncated": True}) is None


@pytest.mark.parametrize("info", [{}, {"credit": 3.0}, {"credit": []}, {"credit": [[1.0]]}])
def test_credit_that_cannot_be_used_is_refused(info):
    with pytest.raises(InvalidArgumentError, match="credit"):
        credit_of(info)
