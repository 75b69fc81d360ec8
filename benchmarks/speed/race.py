"""A race to trl's best score, with dense reward on textgym's side.

trl is paid the score at the end, textgym as each of :data:`CONTESTANTS` says. The sides take turns,
ten iterations each, until all of them are done. The score to be reached is the best running mean
that trl shows; a side reaches it at the first iteration whose running mean is as high.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.timing import Comparison
from speed.iteration import TRL_FAST, fastest
from speed.ratios import Row, result
from speed.textgym_side import NUM_ENVS, Rows, Side, Textgym, take_turns, thread_numbers
from speed.trl_side import Trl, draw_prompts, has_trl
from textgym.benchmark import METHODS
from textgym.benchmark.training import hyperparameters
from textgym.plotting import first_reached, trailing_mean

__all__ = ["measure", "reached"]

SMOOTHING = 10
"""Iterations of the running mean that decides the race."""
TRL_RACE: dict[str, Any] = {
    "minibatch_size": 16,
    "learning_rate": 5e-5,
    "bfloat16": True,
    "attention": "eager",
}
"""trl's settings: on seed 0, minibatches of 4 and rates of 1e-4 and 2e-4 did worse."""
CONTESTANTS = ("prefix score", "RLOO, prefix score", "sparse, λ = 1")
"""textgym's methods of :mod:`textgym.benchmark`, as tuned; a bundled agent each."""


def reached(rows: Sequence[dict[str, float]], goal: float) -> tuple[int, float] | None:
    """The first iteration, from 1, whose running mean reaches a score, and the seconds until then.

    Args:
        rows: ``score`` and ``seconds`` of each iteration.
        goal: The score.

    Returns:
        None if it is not reached.
    """
    iteration = first_reached([row["score"] for row in rows], goal, SMOOTHING)
    if iteration is None:
        return None
    return iteration, sum(row["seconds"] for row in rows[:iteration])


def measure(quick: bool) -> list[Row]:
    """Seconds that trl takes to its best score over those of each contestant; see the module.

    Args:
        quick: One seed, a few iterations.

    Returns:
        A row for each contestant, with the median over seeds; the ratio of a seed is 0 if the
        contestant does not reach the score. No rows if trl's environment is missing.
    """
    if not has_trl():
        return []
    blocks, iterations, seeds = (1, 2, 1) if quick else (7, 10, 3)
    settings = {"trl": {**TRL_FAST, **TRL_RACE}}
    settings |= {name: _tuned(name, blocks * iterations) for name in CONTESTANTS}
    for name, of_side in settings.items():
        candidates = [{**of_side, "threads": threads} for threads in thread_numbers()]
        settings[name] = candidates[0] if quick else fastest(name, candidates)[0]
    runs: dict[str, list[Rows]] = {name: [] for name in settings}
    for seed in range(seeds):
        prompts = draw_prompts(blocks * iterations * NUM_ENVS, seed=1000 + seed)
        with Trl(prompts, seed=seed, **settings["trl"]) as trl:
            sides: dict[str, Side] = {"trl": trl}
            sides |= {name: Textgym(seed=seed, **settings[name]) for name in CONTESTANTS}
            for name, of_blocks in take_turns(sides, blocks, iterations).items():
                runs[name].append([row for block in of_blocks for row in block])
    return [_outcome(name, runs, settings) for name in CONTESTANTS]


def _tuned(name: str, iterations: int) -> dict[str, Any]:
    """Settings of textgym's side in a run of this length."""
    method = METHODS[name]
    return {
        "agent": method.agent,
        "credit": method.credit,
        **method.credit_kwargs,
        "kl_target": None,
        "bfloat16": True,
        **hyperparameters(method, "8-16", iterations),
    }


def _outcome(
    name: str,
    runs: dict[str, list[Rows]],
    settings: dict[str, dict[str, Any]],
) -> Row:
    """The row of one contestant of the race."""
    sides = ("trl", name)
    scores = [[row["score"] for row in rows] for rows in runs["trl"]]
    goals = [float(trailing_mean(of_run, SMOOTHING).max()) for of_run in scores]
    ends = {
        side: [reached(rows, goal) for rows, goal in zip(runs[side], goals, strict=True)]
        for side in sides
    }
    seconds = {side: [end[1] if end else np.inf for end in of] for side, of in ends.items()}
    return result(
        "race",
        f"{name}, {len(goals)} seeds",
        "seconds to trl's best mean score: trl / textgym",
        Comparison(seconds).ratio("trl", name),
        ">= 5",
        score_to_reach=goals,
        iterations={side: [end and end[0] for end in of] for side, of in ends.items()},
        seconds={side: [end and end[1] for end in of] for side, of in ends.items()},
        curves={
            side: [
                {key: [row[key] for row in rows] for key in ("seconds", "score", "kl")}
                for rows in runs[side]
            ]
            for side in sides
        },
        settings={side: settings[side] for side in sides},
    )
