"""The examples in docstrings do what they show.

An example may use torch, NumPy (as ``np``) and the public names of its own module. It imports
everything else, so that users can paste it.
"""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch

from tests.modules import package_modules
from textgym.credit import CREDIT_ASSIGNERS, POTENTIALS

WITH_EXAMPLES = [name for name, path in package_modules() if ">>> " in path.read_text("utf-8")]


@pytest.fixture(autouse=True)
def clean_registries():
    """Undoes what examples register."""
    kept = [(registry, dict(registry)) for registry in (CREDIT_ASSIGNERS, POTENTIALS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_module(name):
    module = importlib.import_module(name)
    public = {key: getattr(module, key) for key in getattr(module, "__all__", ())}
    results = doctest.testmod(module, globs={"torch": torch, "np": np, **public})
    assert results.attempted > 0
    assert results.failed == 0
