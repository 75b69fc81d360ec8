"""What benchmarks/mismatch.py samples and measures."""

from __future__ import annotations

import pytest
import torch
from training.mismatch import CAUSES, TopP, measure

from textgym.agents import ActionRules


def test_top_p_keeps_the_smallest_set_of_tokens_with_this_probability(language_model):
    sampler = TopP(language_model, ActionRules(num_actions=4))
    sampler.top_p = 0.75
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]]).log()
    probabilities = sampler.next_token_logprobs(logits, torch.tensor(0)).exp()
    torch.testing.assert_close(
        probabilities, torch.tensor([[0, 4 / 9, 2 / 9, 3 / 9], [1.0, 0, 0, 0]])
    )


@pytest.mark.parametrize(
    ("cause", "warned"), [("none, both in float32", 0), ("temperature .7 instead of 1", 1)]
)
def test_a_row_says_what_agents_would_log(cause, warned):
    assert cause in CAUSES
    (row,) = measure(16, cause, 0).to_dict("records")
    assert row["warned"] == warned
    assert (row["sampler_gap"] > 0.1) == (abs(row["importance_weight of tokens"] - 1) > 1e-3)
    assert (row["sampler_gap"] > 0.1) == bool(warned)
