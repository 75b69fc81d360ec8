"""Credit and potentials of a completion do not depend on the layout of its batch."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from tests.theory.process import PROMPTS, build, make_tokenizer, names, per_step
from textgym.credit.potentials import POTENTIALS, AttentionWeightedPrefixScore, FunctionPotential
from textgym.models import Completions

POTENTIALS_TRIED = {
    **{name: potential() for name, potential in POTENTIALS.items()},
    "all layers, one head": AttentionWeightedPrefixScore(layers=(0, 1), heads=1),
    "noise": FunctionPotential(
        lambda prompt, text: zlib.crc32(text.numpy().tobytes()) / 2**30 + len(prompt)
    ),
}


def ragged_batch():
    """Completions of 1 to 4 tokens after both prompts, some of them ended by EOS."""
    prompts = [make_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    texts = [[0, 1, 2, 3], [2, 1, 3], [3], [1, 1, 2, 0], [2, 3], [0]]
    return Completions.from_lists(
        [prompts[i % 2] for i in range(8)], [*texts, texts[0], texts[1]], pad_token_id=3
    )


def moved_right(batch, filler, mixed):
    """Padding on the left in all rows or in every other one, and two more columns on each side."""
    gaps = (~batch.attention_mask).sum(1)

    def move(values, fill):
        wide = torch.nn.functional.pad(values, (2, 2), value=fill)
        return torch.stack(
            [row if mixed and i % 2 else row.roll(2 + int(gaps[i])) for i, row in enumerate(wide)]
        )

    mask = move(batch.attention_mask, False)
    ids = move(batch.input_ids, filler).masked_fill(~mask, filler)
    return Completions(ids, mask, move(batch.completion_mask, False))


def in_every_layout(reward_model, readouts, function):
    """Apply the function to the same batch in many layouts.

    Yields:
        The name of the layout, and the values per step, shape (batch, HORIZON). Rows are always in
        the order of the first layout.
    """

    def values(batch):
        return per_step(function(reward_model.read(batch, readouts)), batch.completion_mask)

    batch = ragged_batch()
    yield "padded on the right", values(batch)
    yield "padded on the left", values(moved_right(batch, 3, mixed=False))
    yield "padded on either side, with a word", values(moved_right(batch, 1, mixed=True))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    yield "in another order", values(batch.select(order))[order.argsort().numpy()]
    for size in (1, 3):
        parts = [values(batch.select(rows)) for rows in torch.arange(len(batch)).split(size)]
        yield f"in batches of {size}", np.concatenate(parts)


def check(layouts):
    (_, expected), *others = layouts
    assert np.isfinite(expected).all()
    assert np.abs(expected).max() > 0.1
    for layout, values in others:
        np.testing.assert_allclose(values, expected, atol=1e-5, err_msg=layout)


@pytest.mark.parametrize("name", names())
def test_credit_does_not_depend_on_padding_order_or_size_of_the_batch(process, word_policy, name):
    assigner = build(name, word_policy, gamma=0.9)
    check(list(in_every_layout(process.reward_model, assigner.readouts, assigner)))


@pytest.mark.parametrize("potential", POTENTIALS_TRIED.values(), ids=POTENTIALS_TRIED)
def test_potentials_do_not_depend_on_padding_order_or_size_of_the_batch(process, potential):
    check(list(in_every_layout(process.reward_model, potential.readouts, potential)))
