"""The program of the planted task, held against hand-worked texts and enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from textgym.errors import InvalidArgumentError
from textgym.planted import (
    EOS_ID,
    PAD_ID,
    PROMPTS,
    START_ID,
    VOCABULARY,
    State,
    contributions,
    encode,
    optimal_completion,
    optimal_score,
    prefix_scores,
    score,
    step,
)


def earned(text):
    """Contributions of the words of a text, without the start token."""
    return contributions(encode(text))[1:].tolist()


def random_texts(num_texts, num_tokens, seed=0):
    return np.random.default_rng(seed).integers(0, len(VOCABULARY), (num_texts, num_tokens))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # plain values
        ("wonderful good bad awful", [2, 1, -1, -2]),
        # an intensifier doubles
        ("very wonderful", [2, 2]),
        ("very awful", [-2, -2]),
        # a negation flips
        ("not good", [-2, 1]),
        ("not awful", [4, -2]),
        # both, in either order
        ("not very good", [-4, 1, 1]),
        ("very not good", [1, -4, 1]),
        ("not very bad", [4, -1, -1]),
        # a repeated modifier counts once, and the first one earns
        ("very very good", [1, 0, 1]),
        ("not not good", [-2, 0, 1]),
        # a word in between ends the effect
        ("not the good", [0, 0, 1]),
        ("very however good", [0, 0, 1]),
        # a modifier acts on one word
        ("very good bad", [1, 1, -1]),
        ("not good bad", [-2, 1, -1]),
        # repetition is worth nothing, whatever stands before it
        ("good very good not good", [1, 0, 0, 0, 0]),
        ("not bad bad", [2, -1, 0]),
        # a repetition uses up its modifiers
        ("good very good bad", [1, 0, 0, -1]),
        # however takes back the first phrase that counted
        ("good however", [1, -1]),
        ("not very good wonderful however", [-4, 1, 1, 2, 2]),
        ("very bad the film was good however", [-1, -1, 0, 0, 0, 1, 2]),
        # once only, and not what comes later
        ("good bad however however", [1, -1, -1, 0]),
        ("good however bad however", [1, -1, -1, 0]),
        # with nothing to take back, it does nothing and stays usable
        ("however good however", [0, 1, -1]),
        # a word that was taken back has still occurred
        ("good however good", [1, -1, 0]),
        # modifiers without a word
        ("very not", [0, 0]),
    ],
)
def test_each_rule_by_hand(text, expected):
    assert earned(text) == expected
    assert score(encode(text)) == sum(expected)


def test_special_tokens_are_neutral_and_part_a_modifier_from_its_word():
    good, very = encode("good very")[1:]
    assert score([PAD_ID, good, START_ID]) == 1
    assert score([very, PAD_ID, good]) == 1


def test_nothing_counts_behind_the_end_token():
    ids = [*encode("good"), EOS_ID, *encode("wonderful however")[1:]]
    assert contributions(ids).tolist() == [0, 1, 0, 0, 0]


def test_prompts_are_neutral():
    assert [score(encode(prompt)) for prompt in PROMPTS] == [0] * len(PROMPTS)
    assert not any(contributions(encode(prompt)).any() for prompt in PROMPTS)


def test_contributions_sum_to_the_score_exactly():
    for ids in random_texts(2000, 20):
        assert contributions(ids).sum() == score(ids)
        assert contributions(ids).dtype == np.float32


def test_prefix_scores_are_the_scores_of_the_prefixes():
    texts = random_texts(50, 12, seed=1)
    expected = [[score(ids[: end + 1]) for end in range(12)] for ids in texts]
    np.testing.assert_array_equal(prefix_scores(texts), expected)


@pytest.mark.parametrize("prompt", ["the film was", "not", "very bad and", "good however not"])
@pytest.mark.parametrize("budget", [0, 1, 2, 3, 4])
def test_the_optimum_is_that_of_enumeration(prompt, budget):
    """Enumerates all continuations; one neutral word stands for all neutral words."""
    tokens = [*range(EOS_ID, VOCABULARY.index("film"))]
    ids = encode(prompt)
    best = max(score([*ids, *rest]) for rest in itertools.product(tokens, repeat=budget))
    assert optimal_score(ids, budget) == best
    assert score([*ids, *optimal_completion(ids, budget)]) == best


def test_the_optimal_completion_reaches_the_optimal_score_at_every_budget():
    for ids, budget in itertools.product([encode(p) for p in ("it was", "good not")], range(15)):
        completion = optimal_completion(ids, budget)
        assert len(completion) == budget
        assert min(completion, default=3) > EOS_ID
        assert score([*ids, *completion]) == optimal_score(ids, budget)


def test_the_optimum_saturates_when_all_words_are_said():
    scores = [optimal_score(encode("it was"), budget) for budget in range(13)]
    assert scores == [0, 2, 4, 5, 6, 8, 9, 10, 10, 11, 12, 12, 12]


def test_without_negation_the_best_score_is_six():
    states, not_id = {State(): 0}, VOCABULARY.index("not")
    for _ in range(8):
        reached = {}
        for state, total in states.items():
            for token in range(len(VOCABULARY)):
                if token != not_id:
                    after, change = step(state, token)
                    reached[after] = max(reached.get(after, -99), total + change)
        states = reached
    assert max(states.values()) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score([17]), "token ids run from 0 to 16"),
        (lambda: contributions([-1]), "token ids run from 0 to 16"),
        (lambda: optimal_score([17], 2), "prompt_ids=17"),
        (lambda: optimal_score([1], -1), "num_new_tokens=-1"),
        (lambda: encode("the Film"), "'Film' is not one of the words"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call()
