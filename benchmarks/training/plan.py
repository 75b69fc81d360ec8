"""What tuning.py compares, and on which tasks: plain data, without torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.halving import Rung
from textgym.benchmark import METHODS as SUITE_METHODS
from textgym.benchmark import SUITES
from textgym.benchmark import TASKS as SUITE_TASKS
from textgym.benchmark import Task as SuiteTask
from textgym.benchmark.sb3 import SB3Agent

__all__ = [
    "ABLATED",
    "FRONTIER",
    "FRONTIER_KL_COEFS",
    "METHODS",
    "NUM_EPISODES",
    "TASKS",
    "UNTRAINED",
    "VARIANTS",
    "Method",
    "Task",
    "with_learning_rates",
]

NUM_EPISODES = 16
"""Episodes per iteration, all in one batch."""
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Method:
    """An agent, what it learns from, and the choices that it alone has.

    Attributes:
        agent: "ppo", "rloo" or "grpo", or a function that makes an agent, as
            :class:`textgym.benchmark.Method` has it.
        credit: Id of the credit assigner.
        color: In figures.
        choices: Hyperparameters that are searched, and ``start`` of the credit assigner.
        fixed: Those that are not.
        minibatches: The hyperparameter that decides the size of a minibatch, and its values for
            2, 4 and 8 of the 16 completions; None if there is one batch.
        num_envs: Rows of the environment.
    """

    agent: str | Callable[..., Any]
    credit: str
    color: str
    choices: dict[str, Sequence[Any]]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    minibatches: tuple[str, Sequence[int]] | None = ("minibatch_size", (2, 4, 8))
    num_envs: int = NUM_EPISODES


_START = {"start": ("zero", "prompt")}
_LAMBDA = {"gae_lambda": (0.8, 0.9, 0.95, 1.0)}
_HINDSIGHT = {**_LAMBDA, **_START}
_CAUSAL = {"gae_lambda": (0.0, 0.5, 0.8, 0.95), **_START}
_GROUPS = {"num_epochs": (1, 2, 4)}
_BUNDLED = {
    "sparse": Method("ppo", "sparse", "#0072B2", {"gae_lambda": (0.8, 0.9, 0.95, 0.98), **_START}),
    "sparse, λ = 1": Method("ppo", "sparse", "#56B4E9", _START, {"gae_lambda": 1.0}),
    "uniform": Method("ppo", "uniform", "#CC79A7", _HINDSIGHT),
    "ABC": Method("ppo", "abc", "#E69F00", _HINDSIGHT),
    "prefix score": Method("ppo", "prefix-score", "#D55E00", _CAUSAL),
    "attention-weighted": Method("ppo", "shaping", "#009E73", _CAUSAL),
    "RLOO": Method("rloo", "sparse", "#000000", _GROUPS),
    "GRPO": Method("grpo", "sparse", "#999999", _GROUPS),
    "RLOO, prefix score": Method(
        "rloo", "prefix-score", "#8B5A2B", _GROUPS, {"advantages": "token"}
    ),
}


def _sb3(
    algorithm: str,
    credit: str,
    color: str,
    choices: dict[str, Sequence[Any]],
    fixed: dict[str, Any],
    minibatches: tuple[str, Sequence[int]] | None,
) -> Method:
    agent = partial(SB3Agent, algorithm)
    return Method(agent, credit, color, choices, {"vf_coef": 0.1, **fixed}, minibatches, num_envs=4)


_EPOCHS = {"n_epochs": (1, 2, 4)}
_SPARSE_EPOCHS = {**_EPOCHS, **_LAMBDA}
_CAUSAL_EPOCHS = {**_EPOCHS, "gae_lambda": (0.0, 0.5, 0.8, 0.95)}
_MINIBATCHES = ("num_minibatches", (8, 4, 2))
_SB3 = {
    "SB3's PPO": _sb3("PPO", "sparse", "#A6CEE3", _SPARSE_EPOCHS, {}, _MINIBATCHES),
    "SB3's A2C": _sb3("A2C", "sparse", "#B2DF8A", _LAMBDA, {"use_rms_prop": False}, None),
    "SB3's MaskablePPO": _sb3("MaskablePPO", "sparse", "#CAB2D6", _SPARSE_EPOCHS, {}, _MINIBATCHES),
    "SB3's PPO, prefix score": _sb3(
        "PPO", "prefix-score", "#FB9A99", _CAUSAL_EPOCHS, {}, _MINIBATCHES
    ),
}
METHODS = _BUNDLED | _SB3


def _with_start_of_suites(name: str) -> Method:
    """A method whose credit starts where the suites have it, which is not searched again."""
    method = METHODS[name]
    choices = {choice: values for choice, values in method.choices.items() if choice != "start"}
    start = SUITE_METHODS[name].credit_kwargs.get("start", "zero")
    return dataclasses.replace(method, choices=choices, fixed=method.fixed | {"start": start})


@dataclass(frozen=True)
class Task:
    """A task of the suites, and how settings are searched there.

    Attributes:
        of_suites: The task.
        title: What tables and figures call it.
        iterations: Length of a full run.
        settings_from: The task whose best settings the search starts from; None for new ones.
        rungs: Of the search.
        learning_rate_factors: Each of those settings is tried with its learning rate times these.
        learning_rate: The lowest and the highest of new settings.
        methods: Those that are searched, by name.
    """

    of_suites: SuiteTask
    title: str
    iterations: int
    settings_from: str | None
    rungs: tuple[Rung, ...]
    learning_rate_factors: tuple[float, ...] = (1.0,)
    learning_rate: tuple[float, float] = (5e-5, 8e-4)
    methods: Mapping[str, Method] = dataclasses.field(default_factory=lambda: _BUNDLED)


_FACTORS = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
TASKS = {
    "short": Task(
        SUITE_TASKS["8-16"],
        "Completions of 8 to 16 tokens",
        80,
        None,
        (Rung(32, (100,), 4), Rung(80, (101,), 2), Rung(80, (102,), 2)),
    ),
    "medium": Task(
        SUITE_TASKS["40-60"],
        "Completions of 40 to 60 tokens",
        60,
        "short",
        (Rung(20, (100,), 2), Rung(60, (101, 102), 2)),
        _FACTORS,
    ),
    "long": Task(
        SUITE_TASKS["140-160"],
        "Completions of 140 to 160 tokens",
        50,
        "short",
        (Rung(20, (100,), 2), Rung(50, (101,), 2)),
        _FACTORS,
    ),
    "planted": Task(
        SUITE_TASKS["planted"],
        "The planted task",
        50,
        None,
        (Rung(32, (100,), 4), Rung(50, (101,), 2), Rung(50, (102,), 2)),
        learning_rate=(5e-4, 2e-2),
        methods={name: _with_start_of_suites(name) for name in SUITES["leaderboard"].methods},
    ),
}


def with_learning_rates(setting: str, factors: Sequence[float]) -> list[str]:
    """A setting, as JSON, with its learning rate times each of the factors, to two digits."""
    chosen = json.loads(setting)
    rates = (float(f"{chosen['learning_rate'] * factor:.2g}") for factor in factors)
    return [json.dumps(chosen | {"learning_rate": rate}) for rate in rates]


FRONTIER = ("sparse, λ = 1", "prefix score", "RLOO", "GRPO")
"""The methods whose score is compared at equal KL."""
FRONTIER_KL_COEFS = (0.02, 0.04, 0.08)
"""Coefficients of the KL penalty under which each of them runs."""

ABLATED = "prefix score"
"""The method whose best setting is changed, one choice at a time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as tuned": {},
    "start at zero": {"start": "zero"},
    "start at the prompt": {"start": "prompt"},
    "λ = 0": {"gae_lambda": 0.0},
    "λ = .5": {"gae_lambda": 0.5},
    "λ = .95": {"gae_lambda": 0.95},
    "λ = 0, critic's λ = 1": {"gae_lambda": 0.0, "critic_lambda": 1.0},
    "no annealing": {"anneal_iterations": None},
    "warm-up of 5 iterations": {"warmup_iterations": 5},
    "Adam's ε = 1e-5": {"adam_eps": 1e-5},
    "2 epochs": {"num_epochs": 2},
    "8 epochs": {"num_epochs": 8},
    "upper clip .28": {"clip_coef_high": 0.28},
    "early stop at .02": {"max_approx_kl": 0.02},
    "vf_coef .5, no value clip": {"vf_coef": 0.5, "vf_clip_coef": None},
    "no whitening": {"whiten_advantages": False},
    "exact KL": {"kl_penalty": "exact"},
    "exact KL, a fifth of the weight": {"kl_penalty": "exact", "kl_coef_factor": 0.2},
    "KL controller to the budget": {"kl_target": 25.0, "kl_controller": "pi"},
    "no critic": {"critic": "none"},
    "sparse reward, reward-model critic": {"credit": "sparse", "critic": "reward-model"},
    "sparse reward, separate critic": {"credit": "sparse", "critic": "separate"},
}
"""What is changed in it. Two keys are no hyperparameters: ``credit``, the credit assigner, and
``kl_coef_factor``, by which the tuned weight of the KL penalty is multiplied."""
