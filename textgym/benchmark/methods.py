"""The methods that suites compare, and how you add your own.

There are two readings of each method. *As published* ("ABC (published)"): the settings of the paper
(Chan et al., 2024, arXiv 2402.00782), with its learning rate and KL coefficient scaled to the
embedded models; sparse reward has the same. *As tuned* ("ABC"): the settings that won a search with
the same budget for all methods (benchmarks/tuning.py).
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from textgym.errors import InvalidArgumentError

from .plan import Method
from .sb3 import SB3Agent

__all__ = [
    "FRONTIER",
    "FRONTIER_KL_COEFS",
    "METHODS",
    "find_method",
    "load_methods",
    "register_method",
]

METHODS: dict[str, Method] = {}
"""All methods by name."""
FRONTIER = ("sparse, λ = 1", "uniform", "ABC", "prefix score", "RLOO, prefix score")
"""Methods that also exist with other weights of the KL penalty, such as "ABC, KL 0.04"."""
FRONTIER_KL_COEFS = (0.02, 0.04, 0.08)
"""The weights."""


def register_method(name: str, method: Method) -> Method:
    """Add a method, so that suites can name it.

    Args:
        name: What tables and figures call it.
        method: The method.

    Returns:
        The method.

    Raises:
        InvalidArgumentError: If the name is taken, or ``method`` is no :class:`Method`.

    Example:
        >>> from textgym.benchmark import METHODS, Method
        >>> method = register_method("half", Method(credit="abc", credit_kwargs={"beta": 0.5}))
        >>> METHODS.pop("half") is method
        True
    """
    if name in METHODS:
        raise InvalidArgumentError("name", name, "there is a method of this name; take another")
    if not isinstance(method, Method):
        raise InvalidArgumentError("method", method, "must be a textgym.benchmark.Method")
    METHODS[name] = method
    return method


def find_method(name: str) -> Method:
    """Look up a method.

    Raises:
        InvalidArgumentError: If there is none of this name.
    """
    if name not in METHODS:
        raise InvalidArgumentError(
            "method", name, f"must be one of {'; '.join(METHODS)}, or register it (--methods FILE)"
        )
    return METHODS[name]


def load_methods(path: str | Path | None) -> list[str]:
    """Run a Python file that registers methods; a second call does nothing.

    The file can import its neighbours.

    Args:
        path: The file; None for none.

    Returns:
        The names that it registered.

    Raises:
        InvalidArgumentError: If there is no such file, or it fails, or registers nothing.
    """
    if path is None:
        return []
    path = Path(path).resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise InvalidArgumentError("methods", str(path), "must be a Python file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = set(METHODS)
    try:
        runpy.run_path(str(path))
    except Exception as error:
        for name in METHODS.keys() - known:
            del METHODS[name]
        raise InvalidArgumentError("methods", str(path), f"it fails: {error!r}") from error
    registered = [method for method in METHODS if method not in known]
    if not registered:
        raise InvalidArgumentError("methods", str(path), "it must call register_method")
    _loaded[path] = registered
    return registered


_loaded: dict[Path, list[str]] = {}
"""Files that were run in this process, and what they registered."""


_PUBLISHED: dict[str, Any] = {
    "learning_rate": 5e-5,
    "kl_coef": 0.1,
    "kl_target": 6.0,
    "gae_lambda": 0.95,
}
_PROMPT = {"start": "prompt"}
_MEDIUM = ("20-30", "40-60")
"""Tasks with the settings that the search found best at 40 to 60 tokens."""
_LONG = ("90-110", "140-160")
"""Tasks with the settings that the search found best at 140 to 160 tokens."""
_PLANTED = ("planted",)
"""The task with the settings that its own search found best."""
_COLORS = {
    "sparse": "#0072B2",
    "sparse, λ = 1": "#56B4E9",
    "uniform": "#CC79A7",
    "ABC": "#E69F00",
    "ABC, β = 1": "#F0E442",
    "ABC-D": "#882255",
    "random": "#999999",
    "shuffled ABC": "#000000",
    "position": "#661100",
    "prefix score": "#D55E00",
    "attention-weighted": "#009E73",
    "RLOO": "#332288",
    "GRPO": "#117733",
    "RLOO, prefix score": "#8B5A2B",
    "SB3's PPO": "#A6CEE3",
    "SB3's A2C": "#B2DF8A",
    "SB3's MaskablePPO": "#CAB2D6",
    "SB3's PPO, prefix score": "#FB9A99",
}


def _register_all() -> None:
    tuned = {
        "sparse": Method(
            hyperparameters=_setting(4.1e-4, 0.039, gae_lambda=0.95),
            by_task=_at((*_MEDIUM, *_LONG), 1e-4, 0.039, gae_lambda=0.95)
            | _at(_PLANTED, 3.4e-3, 0.053, gae_lambda=0.98),
        ),
        "sparse, λ = 1": Method(
            credit_kwargs=_PROMPT,
            hyperparameters=_setting(2.7e-4, 0.034, minibatch_size=8, gae_lambda=1.0),
            by_task=_at(_MEDIUM, 1.4e-4, 0.034, minibatch_size=8, gae_lambda=1.0)
            | _at(_LONG, 3.4e-5, 0.034, minibatch_size=8, gae_lambda=1.0)
            | _at(_PLANTED, 6.1e-3, 0.076, gae_lambda=1.0),
        ),
        "uniform": Method(
            credit="uniform",
            credit_kwargs=_PROMPT,
            hyperparameters=_setting(6.2e-4, 0.039, gae_lambda=0.9),
            by_task=_at(_MEDIUM, 3.1e-4, 0.039, gae_lambda=0.9)
            | _at(_LONG, 2.6e-5, 0.053, gae_lambda=1.0),
        ),
        "ABC": Method(
            credit="abc",
            credit_kwargs=_PROMPT,
            hyperparameters=_setting(5.7e-4, 0.055, gae_lambda=0.95),
            by_task=_at(_MEDIUM, 2.8e-4, 0.055, gae_lambda=0.95)
            | _at(_LONG, 3.2e-5, 0.034, gae_lambda=1.0)
            | _at(_PLANTED, 6.8e-3, 0.18, minibatch_size=8, gae_lambda=1.0),
        ),
        "prefix score": Method(
            credit="prefix-score",
            credit_kwargs=_PROMPT,
            hyperparameters=_setting(3.3e-4, 0.076, gae_lambda=0.8),
            by_task=_at(_MEDIUM, 1.8e-4, 0.075, minibatch_size=8, gae_lambda=0.0)
            | _at(_LONG, 9.2e-5, 0.075, minibatch_size=8, gae_lambda=0.0)
            | _at(_PLANTED, 6.1e-3, 0.076, gae_lambda=0.8),
        ),
        "attention-weighted": Method(
            credit="shaping",
            credit_kwargs=_PROMPT,
            hyperparameters=_setting(3.3e-4, 0.076, gae_lambda=0.8),
        ),
        "RLOO": Method(
            agent="rloo",
            hyperparameters=_setting(6e-4, 0.078, minibatch_size=8, num_epochs=2),
            by_task=_at(_MEDIUM, 8.5e-5, 0.031, num_epochs=2)
            | _at(_LONG, 1.5e-4, 0.078, minibatch_size=8, num_epochs=2)
            | _at(_PLANTED, 6.1e-3, 0.076, num_epochs=2),
        ),
        "GRPO": Method(
            agent="grpo",
            hyperparameters=_setting(2.6e-4, 0.04, num_epochs=1),
            by_task=_at(_PLANTED, 1.4e-2, 0.037, minibatch_size=8, num_epochs=4),
        ),
        "RLOO, prefix score": Method(
            agent="rloo",
            credit="prefix-score",
            hyperparameters=_setting(
                4.5e-4, 0.056, minibatch_size=8, num_epochs=1, advantages="token"
            ),
            by_task=_at(_LONG, 2.2e-4, 0.056, minibatch_size=8, num_epochs=1, advantages="token")
            | _at(_PLANTED, 1.4e-2, 0.11, minibatch_size=8, num_epochs=2, advantages="token"),
        ),
    }
    # On film reviews SB3's agents had no search: their weight of the KL penalty is that of
    # "sparse, λ = 1".
    shared = {"kl_coef": 0.034, "vf_coef": 0.1, "gae_lambda": 1.0}
    ppo = {"learning_rate": 1e-4, "num_minibatches": 4, "n_epochs": 2, **shared}
    a2c = {"learning_rate": 3e-4, "use_rms_prop": False, **shared}
    tuned |= {
        "SB3's PPO": _sb3("PPO", ppo, 7.9e-3, 0.065, num_minibatches=2, n_epochs=4),
        "SB3's A2C": _sb3("A2C", a2c, 1.6e-2, 0.048, gae_lambda=0.95),
        "SB3's MaskablePPO": _sb3("MaskablePPO", ppo, 6.1e-3, 0.076, gae_lambda=0.95),
        "SB3's PPO, prefix score": replace(
            _sb3("PPO", {**ppo, "gae_lambda": 0.8}, 3.4e-3, 0.053, n_epochs=4, gae_lambda=0.95),
            credit="prefix-score",
            credit_kwargs=_PROMPT,
        ),
    }
    # Variants and controls of ABC take its settings.
    abc = tuned["ABC"]
    tuned |= {
        "ABC, β = 1": replace(abc, credit_kwargs={"beta": 1.0, **_PROMPT}),
        "ABC-D": replace(abc, credit="abc-d", credit_kwargs={"policy": "embedded", **_PROMPT}),
        "random": replace(abc, credit="random"),
        "shuffled ABC": replace(abc, credit="shuffled-abc"),
        "position": replace(abc, credit="position"),
    }
    for name, method in tuned.items():
        register_method(name, replace(method, color=_COLORS[name]))
    for name in FRONTIER:
        for kl_coef in FRONTIER_KL_COEFS:
            changed = {"kl_coef": kl_coef}
            base = METHODS[name]
            by_task = {task: {**settings, **changed} for task, settings in base.by_task.items()}
            variant = replace(
                base,
                hyperparameters={**base.hyperparameters, **changed},
                by_task=by_task,
                family=name,
            )
            register_method(f"{name}, KL {kl_coef:g}", variant)
    published = {
        name: Method(credit=tuned[name].credit, hyperparameters=_PUBLISHED)
        for name in _COLORS
        if tuned[name].agent == "ppo"
    }
    published["ABC-D"] = replace(published["ABC-D"], credit_kwargs={"policy": "embedded"})
    published["sparse, λ = 1"] = Method(hyperparameters=_PUBLISHED | {"gae_lambda": 1.0})
    swept = {
        f"β = {tenth / 10:g}": replace(published["ABC"], credit_kwargs={"beta": tenth / 10})
        for tenth in range(11)
    }
    published["ABC, β = 1"] = swept["β = 1"]
    for name, method in (published | swept).items():
        register_method(f"{name} (published)", replace(method, color=_COLORS.get(name)))


def _setting(
    learning_rate: float, kl_coef: float, minibatch_size: int = 4, **others: Any
) -> dict[str, Any]:
    return {
        "learning_rate": learning_rate,
        "kl_coef": kl_coef,
        "minibatch_size": minibatch_size,
        "anneal_iterations": "run",
        **others,
    }


def _at(tasks: tuple[str, ...], *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(tasks, _setting(*args, **kwargs))


def _sb3(
    algorithm: str,
    hyperparameters: dict[str, Any],
    planted_learning_rate: float,
    planted_kl_coef: float,
    **planted: Any,
) -> Method:
    """An agent of SB3, with what a search found on the planted task."""
    planted |= {"learning_rate": planted_learning_rate, "kl_coef": planted_kl_coef}
    return Method(
        agent=partial(SB3Agent, algorithm),
        hyperparameters=hyperparameters,
        by_task=dict.fromkeys(_PLANTED, planted),
        num_envs=4,
    )


_register_all()
