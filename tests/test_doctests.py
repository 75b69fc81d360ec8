"""The examples in the documentation do what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.test_architecture import modules

WITH_EXAMPLES = [name for name, path in modules() if ">>> " in path.read_text()]


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_module(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert results.attempted > 0
    assert results.failed == 0
