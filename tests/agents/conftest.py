"""Fixtures of the agents: a tiny language model and a tiny environment."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from token_env import TokenEnv, TokenVectorEnv, make_tiny_model


@pytest.fixture
def make_env() -> Callable[..., TokenEnv]:
    return TokenEnv


@pytest.fixture
def make_vector_env() -> Callable[..., TokenVectorEnv]:
    return TokenVectorEnv


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return make_tiny_model


@pytest.fixture
def recorded(monkeypatch) -> Callable[..., list[SimpleNamespace]]:
    """Records the arguments and results of a module's function from now on."""

    def record(module: Any, name: str) -> list[SimpleNamespace]:
        calls: list[SimpleNamespace] = []
        function = getattr(module, name)

        def recording(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            calls.append(SimpleNamespace(args=args, kwargs=kwargs, result=result))
            return result

        monkeypatch.setattr(module, name, recording)
        return calls

    return record


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
