"""Assigners and potentials by name, by function and by module."""

from __future__ import annotations

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.credit.texts import five_tokens
from textgym.credit import (
    CREDIT_ASSIGNERS,
    CreditAssigner,
    FunctionCredit,
    HindsightCredit,
    UniformCredit,
    find_credit_assigner,
    get_credit_assigner,
    register_credit_assigner,
)
from textgym.credit.potentials import POTENTIALS, Potential, get_potential, register_potential
from textgym.errors import InvalidArgumentError
from textgym.models import PrefixScores
from textgym.wrappers import AttentionShaping, CreditAssignment


@pytest.fixture
def clean():
    """Undoes what a test registers."""
    before, potentials = dict(CREDIT_ASSIGNERS), dict(POTENTIALS)
    yield
    CREDIT_ASSIGNERS.clear()
    CREDIT_ASSIGNERS.update(before)
    POTENTIALS.clear()
    POTENTIALS.update(potentials)


@pytest.mark.parametrize("name", sorted(CREDIT_ASSIGNERS))
def test_every_assigner_declares_what_it_is(name):
    assigner = CREDIT_ASSIGNERS[name]
    assert assigner.name == name
    assert isinstance(assigner.causal, bool)
    assert isinstance(assigner.signed, bool)
    for declared in (assigner.paper, assigner.sums_to, assigner.cost):
        assert isinstance(declared, str)
        assert declared
    page = inspect.getdoc(assigner) or ""
    for part in ("Cost:", "Guarantee:", "Example:", ">>> ", "credit"):
        assert part in page, part


def test_labels_are_for_people_and_default_to_the_id():
    class Mine(UniformCredit):
        name = "mine"

    assert CREDIT_ASSIGNERS["abc"].label == "ABC"
    assert CREDIT_ASSIGNERS["shaping"].label == "causal shaping"
    assert Mine.label == "mine"  # not its parent's label
    labels = [assigner.label for assigner in CREDIT_ASSIGNERS.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("attention", "abc"),
        ("shuffled-attention", "shuffled-abc"),
        ("policy-attention", "abc-d"),
        ("policy-attention-last", "abc-d2"),
        ("textgym.credit:attention", "abc"),
    ],
)
def test_former_ids_still_work_and_are_not_listed(alias, name):
    assert find_credit_assigner(alias) is CREDIT_ASSIGNERS[name]
    assert alias not in CREDIT_ASSIGNERS


def test_an_assigner_is_returned_as_it_is():
    mine = UniformCredit()
    assert get_credit_assigner(mine) is mine


def test_a_registered_class_is_found_by_its_name(clean):
    @register_credit_assigner
    class First(HindsightCredit):
        name, signed = "first", False

        def attributions(self, scored):
            first = scored.completion_mask & (scored.completion_mask.cumsum(1) == 1)
            return first * scored.score[:, None]

    credit = get_credit_assigner("first", beta=0.25)(five_tokens())
    torch.testing.assert_close(credit[0, 2:], torch.tensor([0.5, 0, 0, 0, 1.5]))


def test_a_registered_function_is_found_by_its_name_with_its_readouts(clean):
    @register_credit_assigner(name="prefix", readouts=[PrefixScores()], paper="mine")
    def prefix(scored):
        return scored[PrefixScores()]

    assigner = get_credit_assigner("prefix", beta=1.0, gamma=0.5)
    assert assigner.readouts == {PrefixScores()}
    assert (assigner.name, assigner.paper) == ("prefix", "mine")
    assert repr(assigner) == "prefix(beta=1.0, gamma=0.5, start='zero')"
    scored = five_tokens({PrefixScores(): [[0.0, 0.0, 16.0, 0.0, 0.0, 0.0, 0.0]]})
    # 16 · 0.5⁴ is paid four steps before the end, where it is worth 16 of the last token's 2.
    torch.testing.assert_close(assigner(scored)[0, 2:], torch.tensor([1.0, 0, 0, 0, -14.0]))


def test_a_plain_function_serves_as_credit(tiny):
    def first(scored):
        is_first = scored.completion_mask & (scored.completion_mask.cumsum(1) == 1)
        return is_first * scored.score[:, None]

    env = CreditAssignment(gym.make("ABC-RLHF-v0", **tiny), first)
    env.reset(seed=0, options={"max_new_tokens": 3})
    for token in (40, 41, 42):
        *_, info = env.step(token)
    expected = np.array([0.8, 0.0, 0.2]) * info["score"]
    np.testing.assert_allclose(info["credit"], expected, atol=1e-6)


def test_importing_a_module_registers_what_it_defines(clean, tmp_path, monkeypatch):
    (tmp_path / "my_credit.py").write_text(
        "from textgym.credit import register_credit_assigner\n"
        '@register_credit_assigner(name="zero")\n'
        "def zero(scored):\n"
        "    return scored.score[:, None] * 0 * scored.completion_mask\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    credit = get_credit_assigner("my_credit:zero")(five_tokens())
    torch.testing.assert_close(credit[0, 2:], torch.tensor([0.0, 0, 0, 0, 2]))


@pytest.mark.parametrize(
    ("credit", "arguments", "message"),
    [
        ("abcd", {}, "did you mean 'abc-d'"),
        ("ABC", {}, "did you mean 'abc'"),
        ("atention", {}, "did you mean 'abc'"),  # close to a former id
        ("no_such_module:abc", {}, "no_such_module"),
        ("abc-d", {}, "policy"),
        ("uniform", {"layers": 0}, "layers"),
        (3, {}, "credit=3"),
    ],
)
def test_what_cannot_be_found_is_named(credit, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        get_credit_assigner(credit, **arguments)


def test_a_function_that_returns_another_shape_is_refused():
    with pytest.raises(InvalidArgumentError, match="shape"):
        FunctionCredit(lambda scored: scored.score)(five_tokens())


def test_names_cannot_be_taken_twice(clean):
    class Mine(CreditAssigner):
        name = "abc"

    class Former(CreditAssigner):
        name = "attention"

    with pytest.raises(InvalidArgumentError, match="taken by AttentionCredit"):
        register_credit_assigner(Mine)
    with pytest.raises(InvalidArgumentError, match="alias of 'abc'"):
        register_credit_assigner(Former)
    with pytest.raises(InvalidArgumentError, match="name"):
        register_credit_assigner(name="")(lambda scored: scored.score)
    with pytest.raises(InvalidArgumentError, match="decorate"):
        register_credit_assigner(lambda scored: scored.score)


def test_a_potential_needs_a_name_of_its_own(clean):
    class Mine(Potential):
        name = "prefix-score"

    class Nameless(Potential):
        pass

    with pytest.raises(InvalidArgumentError, match="taken by PrefixScore"):
        register_potential(Mine)
    with pytest.raises(InvalidArgumentError, match="name"):
        register_potential(Nameless)


def test_a_potential_is_found_by_name_by_function_and_by_default(clean):
    @register_potential
    class Length(Potential):
        name = "length"

        def __call__(self, scored):
            return scored.completion_mask.cumsum(1) * scored.completion_mask

    assert isinstance(get_potential("length"), Length)
    assert get_potential(None).name == "attention-weighted-prefix-score"
    assert get_potential(lambda prompt, completion: 0.0).name == "function"
    with pytest.raises(InvalidArgumentError, match="prefix-score"):
        get_potential("lenght")


def test_a_function_of_the_state_shapes_every_step(tiny):
    env = AttentionShaping(
        gym.make("ABC-RLHF-v0", **tiny), potential=lambda prompt, completion: len(completion) ** 2
    )
    env.reset(seed=0, options={"max_new_tokens": 4})
    shaping = [env.step(40 + step)[-1]["shaping"] for step in range(4)]
    np.testing.assert_allclose(shaping, [1, 3, 5, -9])
