"""Errors keep what they say, also in another process."""

from __future__ import annotations

import pickle

import pytest

from textgym.errors import InvalidArgumentError, MissingDependencyError, TextgymError


def test_errors_are_built_in_exceptions_too():
    assert isinstance(InvalidArgumentError("a", 1, "b"), ValueError)
    assert isinstance(MissingDependencyError("a", "b", "c"), ImportError)


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("beta", [2.0], "must be a number"),
        MissingDependencyError("captum", "attribution", "integrated gradients"),
        TextgymError("of another kind"),
    ],
)
def test_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_value_that_cannot_be_pickled_travels_as_its_repr():
    value = lambda: None  # noqa: E731
    error = InvalidArgumentError("reward_model", value, "must be a model")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.value == repr(value)
