"""The arithmetic of credit on made-up read-outs: sums, discounts, edge cases, invariances."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.credit import (
    AttentionCredit,
    AttentionRolloutCredit,
    FunctionCredit,
    PositionCredit,
    PrefixScoreCredit,
    RandomCredit,
    ShapingCredit,
    ShuffledAttentionCredit,
    SparseCredit,
    UniformCredit,
)
from textgym.credit.potentials import AttentionWeightedPrefixScore, FunctionPotential, PrefixScore
from textgym.credit.shaping import shape
from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionMap,
    AttentionRow,
    Completions,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    ScoredCompletions,
)


def scored_batch(lengths, seed=0, score_scale=1.0):
    """Completions with the given (prompt, completion) lengths and random read-outs."""
    generator = torch.Generator().manual_seed(seed)
    batch = Completions.from_lists(
        [[3] * prompt for prompt, _ in lengths], [[4] * length for _, length in lengths]
    )
    size, num_tokens = batch.input_ids.shape
    mask = batch.attention_mask
    logits = torch.randn(size, num_tokens, num_tokens, generator=generator)
    allowed = mask[:, None, :] & torch.ones(num_tokens, num_tokens).tril().bool()
    attention_map = logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num(0)
    attention_map = attention_map * mask[:, :, None]
    last = mask.sum(1) - 1
    pooling = torch.nn.functional.one_hot(last, num_tokens).float()
    prefix_scores = torch.randn(size, num_tokens, generator=generator) * score_scale * mask
    readouts = {
        PrefixScores(): prefix_scores,
        AttentionRow(): attention_map[torch.arange(size), last],
        AttentionMap(): attention_map,
        LayerAttentionMaps(): torch.stack([attention_map, attention_map], dim=1),
        Pooling(): pooling,
    }
    return batch.with_score(prefix_scores.gather(1, last[:, None])[:, 0], readouts)


def with_readouts(scored, score=None, **readouts):
    """The same completions with other read-outs, and perhaps another score."""
    kinds = {"prefix_scores": PrefixScores(), "attention": AttentionRow()}
    kinds["attention_map"] = AttentionMap()
    changed = {kinds[name]: values for name, values in readouts.items()}
    score = scored.score if score is None else score
    return dataclasses.replace(scored, score=score, readouts={**scored.readouts, **changed})


def discounted_sum(credit, mask, gamma):
    """Σ_t γ^(t-1) credit_t by a plain loop, in float64."""
    return torch.tensor(
        [
            sum(gamma**t * c for t, c in enumerate(row[m].double().tolist()))
            for row, m in zip(credit, mask, strict=True)
        ]
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=5)
GAMMAS = st.sampled_from([1.0, 0.99, 0.9, 0.5])
BETAS = st.sampled_from([0.0, 0.3, 0.8, 1.0])


def assigners(beta, gamma, start="zero"):
    common = {"beta": beta, "gamma": gamma, "start": start}
    return [
        UniformCredit(**common),
        AttentionCredit(**common),
        ShapingCredit(**common),
        PrefixScoreCredit(**common),
        ShapingCredit(lambda prompt, completion: len(completion) ** 0.5 + 1, **common),
        AttentionRolloutCredit(**common),
        RandomCredit(**common, concentration=0.5),
        ShuffledAttentionCredit(**common),
        PositionCredit(**common, profile=[0.1, 0.2, 0.7]),
        FunctionCredit(lambda scored: -scored.input_ids.float(), **common),
        SparseCredit(gamma=gamma, start=start),
    ]


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, gamma=GAMMAS, beta=BETAS, seed=st.integers(0, 99))
def test_every_trajectory_keeps_its_discounted_return(lengths, gamma, beta, seed):
    scored = scored_batch(lengths, seed)
    steps = scored.completion_mask.sum(1)
    expected = scored.score.double() * torch.tensor(gamma, dtype=torch.float64) ** (steps - 1)
    for assigner in assigners(beta, gamma):
        credit = assigner(scored)
        total = discounted_sum(credit, scored.completion_mask, gamma)
        torch.testing.assert_close(total, expected.to(total.dtype), atol=1e-4, rtol=1e-4)
        assert credit[~scored.completion_mask].eq(0).all()
        assert credit.dtype == torch.float32


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, gamma=GAMMAS, beta=BETAS, seed=st.integers(0, 99))
def test_measured_from_the_prompt_every_discounted_return_is_lower_by_the_start_value(
    lengths, gamma, beta, seed
):
    scored = scored_batch(lengths, seed)
    rows = torch.arange(len(lengths))
    prompt_scores = scored[PrefixScores()][rows, torch.tensor([n for n, _ in lengths]) - 1]
    steps = scored.completion_mask.sum(1)
    discounted = scored.score.double() * torch.tensor(gamma, dtype=torch.float64) ** (steps - 1)
    for assigner in assigners(beta, gamma, start="prompt"):
        start_values = prompt_scores
        if isinstance(assigner, ShapingCredit):  # β·Φ(prompt), and the function is 1 there
            is_function = isinstance(assigner.potential, FunctionPotential)
            start_values = beta * (torch.ones(len(rows)) if is_function else prompt_scores)
        torch.testing.assert_close(assigner.start_values(scored), start_values)
        total = discounted_sum(assigner(scored), scored.completion_mask, gamma)
        expected = (discounted - start_values).to(total.dtype)
        torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 99),
    extra=st.integers(1, 4),
    start=st.sampled_from(["zero", "prompt"]),
)
def test_padding_and_batch_order_change_nothing(lengths, seed, extra, start):
    scored = scored_batch(lengths, seed)

    def pad_left(value):
        if value.ndim > 2:
            return torch.nn.functional.pad(value, (extra, 0, extra, 0))
        return torch.nn.functional.pad(value, (extra, 0))

    padded = ScoredCompletions(
        pad_left(scored.input_ids),
        pad_left(scored.attention_mask),
        pad_left(scored.completion_mask),
        scored.score,
        {readout: pad_left(values) for readout, values in scored.readouts.items()},
    )
    backwards = torch.arange(len(lengths)).flip(0)
    for assigner in assigners(0.8, 0.9, start):
        credit = assigner(scored)
        torch.testing.assert_close(assigner(padded)[:, extra:], credit)
        torch.testing.assert_close(assigner(scored.select(backwards)), credit[backwards])
        for row in range(len(lengths)):
            alone = assigner(scored.select(slice(row, row + 1)))
            torch.testing.assert_close(alone, credit[row : row + 1])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), gamma=GAMMAS, beta=BETAS)
def test_a_single_token_gets_the_score(seed, gamma, beta):
    scored = scored_batch([(2, 1)], seed)
    for assigner in assigners(beta, gamma):
        torch.testing.assert_close(assigner(scored)[0, 2], scored.score[0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_all_attention_on_the_prompt_leaves_the_score_at_the_end(gamma):
    scored = scored_batch([(2, 3)])
    on_prompt = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    scored = with_readouts(scored, attention=on_prompt)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, scored.score.item()])
    torch.testing.assert_close(AttentionCredit(0.8, gamma)(scored)[0], expected)


def test_attention_credit_of_five_tokens_by_hand():
    scored = scored_batch([(2, 5)])
    attention = torch.tensor([[0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]])
    scored = with_readouts(scored, torch.tensor([2.0]), attention=attention)
    # Half of the attention is on the prompt: the weights are .1, .4, .1, .2, .2.
    torch.testing.assert_close(
        AttentionCredit(beta=0.5)(scored)[0, 2:], torch.tensor([0.1, 0.4, 0.1, 0.2, 1.2])
    )
    torch.testing.assert_close(
        AttentionCredit(beta=1.0, gamma=0.5)(scored)[0, 2:],
        torch.tensor([0.2 / 16, 0.8 / 8, 0.2 / 4, 0.4 / 2, 0.4]),
    )


def test_attention_credit_measured_from_the_prompt_by_hand():
    scores = torch.tensor([[9.0, 0.5, 0.0, 0.0, 0.0, 0.0, 2.0]])  # the prompt alone: .5
    attention = torch.tensor([[0.25, 0.25, 0.05, 0.2, 0.05, 0.1, 0.1]])
    scored = with_readouts(
        scored_batch([(2, 5)]), torch.tensor([2.0]), attention=attention, prefix_scores=scores
    )
    # 2 - .5 is shared out by the weights .1, .4, .1, .2, .2, half of it at once.
    torch.testing.assert_close(
        AttentionCredit(beta=0.5, start="prompt")(scored)[0, 2:],
        torch.tensor([0.075, 0.3, 0.075, 0.15, 0.9]),
    )
    # At γ = .5 the score is worth 2/16 at the start, 4 tokens earlier; .5 less is -.375.
    torch.testing.assert_close(
        AttentionCredit(beta=1.0, gamma=0.5, start="prompt")(scored)[0, 2:],
        -0.375 * torch.tensor([0.1, 0.4 * 2, 0.1 * 4, 0.2 * 8, 0.2 * 16]),
    )


def test_uniform_and_sparse_credit_by_hand():
    scored = dataclasses.replace(scored_batch([(1, 5)]), score=torch.tensor([2.0]))
    torch.testing.assert_close(
        UniformCredit(beta=0.5)(scored)[0, 1:], torch.tensor([0.2, 0.2, 0.2, 0.2, 1.2])
    )
    torch.testing.assert_close(
        SparseCredit()(scored)[0, 1:], torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])
    )


def test_shaping_by_hand():
    mask = torch.tensor([[False, True, True, True]])
    potential = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
    torch.testing.assert_close(
        shape(potential, torch.tensor([2.0]), mask, gamma=1.0),
        torch.tensor([[0.0, 1.0, 2.0, -1.0]]),
    )
    torch.testing.assert_close(
        shape(potential, torch.tensor([2.0]), mask, gamma=0.5),
        torch.tensor([[0.0, 0.5, 0.5, -1.0]]),
    )


def test_shaping_from_a_start_value_by_hand():
    mask = torch.tensor([[False, True, True, True], [True, False, False, False]])
    potential = torch.tensor([[9.0, 1.0, 3.0, 2.0], [4.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        shape(potential, torch.tensor([2.0, 1.0]), mask, 0.5, torch.tensor([0.25, 3.0])),
        torch.tensor([[0.0, 0.25, 0.5, -1.0], [-2.0, 0.0, 0.0, 0.0]]),
    )


def test_prefix_score_potential_by_hand():
    scored = with_readouts(
        scored_batch([(2, 3)]), prefix_scores=torch.tensor([[5.0, 1.0, 2.0, 4.0, 3.0]])
    )
    torch.testing.assert_close(PrefixScore()(scored), torch.tensor([[0.0, 0.0, 2.0, 4.0, 3.0]]))
    torch.testing.assert_close(PrefixScore().start_values(scored), torch.tensor([1.0]))


def test_attention_weighted_potential_by_hand():
    attention_map = torch.zeros(1, 5, 5)
    attention_map[0, 2] = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])  # on itself: weight 1
    attention_map[0, 3] = torch.tensor([0.4, 0.4, 0.05, 0.15, 0.0])  # weights 1/4, 3/4
    attention_map[0, 4] = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])  # all on the prompt
    scored = with_readouts(
        scored_batch([(2, 3)]),
        prefix_scores=torch.tensor([[5.0, 1.0, 2.0, 4.0, 3.0]]),
        attention_map=attention_map,
    )
    potential = AttentionWeightedPrefixScore()
    torch.testing.assert_close(potential(scored), torch.tensor([[0.0, 0.0, 2.0, 3.5, 3.0]]))
    torch.testing.assert_close(potential.start_values(scored), torch.tensor([1.0]))


@pytest.mark.parametrize(
    "potential",
    [
        PrefixScore(),
        AttentionWeightedPrefixScore(),
        AttentionWeightedPrefixScore(layers=(0, 1), heads="max"),
        FunctionPotential(lambda prompt, completion: float((prompt.sum() * completion).sum() % 7)),
    ],
)
def test_potentials_do_not_look_ahead(reward_model, potential):
    """Φ after t tokens must be the same whatever follows."""
    prompt, start = [1, 40, 41], [50, 60, 70]
    whole = Completions.from_lists([prompt, prompt], [[*start, 80, 90], [*start, 5, 2]])
    cut = Completions.from_lists([prompt], [start])
    after = potential(reward_model.read(whole, potential.readouts))
    before = potential(reward_model.read(cut, potential.readouts))
    torch.testing.assert_close(after[0, :6], after[1, :6], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[0, :6], before[0], atol=1e-5, rtol=0)
    assert before[0, 3:].abs().max() > 1e-3


def test_an_offset_of_the_score_changes_hindsight_credit_but_not_shaping():
    scored = scored_batch([(2, 4)])
    moved = with_readouts(
        scored, scored.score + 3, prefix_scores=scored[PrefixScores()] + 3 * scored.attention_mask
    )
    early = slice(2, 5)
    attention = AttentionCredit()
    assert (attention(moved)[0, early] - attention(scored)[0, early]).abs().min() > 1e-3
    shaping = ShapingCredit()
    torch.testing.assert_close(shaping(moved)[0, early], shaping(scored)[0, early])


@pytest.mark.parametrize(
    "build",
    [
        lambda: AttentionCredit(beta=1.5),
        lambda: UniformCredit(beta=float("nan")),
        lambda: AttentionCredit(gamma=0.0),
        lambda: ShapingCredit(gamma=1.1),
        lambda: ShapingCredit(start="score"),
        lambda: UniformCredit(start=0.5),
        lambda: SparseCredit(start="Prompt"),
        lambda: SparseCredit(gamma=2.0),
        lambda: ShapingCredit(beta=float("inf")),
        lambda: ShapingCredit(potential="prefix-scores"),
        lambda: RandomCredit(concentration=0.0),
        lambda: RandomCredit(seed=-1),
        lambda: PositionCredit(profile=[0.5, -0.5]),
        lambda: AttentionCredit(layers="first"),
        lambda: FunctionPotential(3),
    ],
)
def test_arguments_out_of_range_are_refused(build):
    with pytest.raises(InvalidArgumentError):
        build()


def test_an_empty_completion_is_refused():
    scored = Completions.from_lists([[1, 2]], [[]]).with_score([1.0])
    with pytest.raises(InvalidArgumentError, match="at least one token"):
        UniformCredit()(scored)


def test_discounts_of_long_completions_do_not_overflow():
    """0.9 to the power of -1000 is no float32, and 0.9 to the power of 1000 is 0 there."""
    scored = Completions.from_lists([[1]], [[2] * 1001]).with_score([2.0])
    credit = UniformCredit(beta=0.8, gamma=0.9)(scored)[0, 1:]
    assert credit[0] == 0
    assert credit[-2] == pytest.approx(0.9 * 0.8 * 2 / 1001)
    assert credit[-1] == pytest.approx(0.8 * 2 / 1001 + 0.2 * 2, rel=1e-4)
