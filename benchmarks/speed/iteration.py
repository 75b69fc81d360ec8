"""An iteration of PPO against one of trl 0.7.4 (2023).

Both sides train the same weights with the same hyperparameters on prompts of the same environment,
16 episodes of 8 to 16 tokens and four epochs per iteration, and are paid by the same reward model;
see trl_side.py. Seconds cover generation, scoring and optimisation.

Two differences are in trl's favour. Completions that trl generates together share one length, drawn
anew for each batch, while textgym's episodes have a budget each, and rows wait for the longest. And
trl does not clip gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np
import torch

from harness.timing import Comparison
from speed.ratios import Row, result
from speed.textgym_side import NUM_ENVS, Side, Textgym, take_turns, thread_numbers
from speed.trl_side import Trl, check, draw_prompts, has_trl
from textgym.agents import PPOConfig
from textgym.models.loading import has_bfloat16

__all__ = ["TRL_FAST", "fastest", "measure"]

TRL_FAST: dict[str, Any] = {"generate_batch_size": NUM_ENVS, "fused_adam": True}
"""What speeds trl up whatever its other settings are."""


def measure(quick: bool) -> list[Row]:
    """Seconds per PPO iteration: trl's over ours, at the defaults and at the best of each side.

    Args:
        quick: Few episodes and iterations, no trials of settings; for tests.

    Returns:
        A row per case; none if trl's environment is missing.
    """
    if not has_trl():
        return []
    threads = {"threads": torch.get_num_threads()}
    default: dict[str, Any] = {"minibatch_size": 1, **threads}
    ours = {"minibatch_size": PPOConfig.minibatch_size, **threads}
    trials: dict[str, list[dict]] = {}
    if quick:
        default["episodes"] = ours["episodes"] = 4
        best = dict.fromkeys(("trl", "textgym"), default | {"minibatch_size": 4, "bfloat16": True})
    else:
        best = {}
        for name, candidates in _candidates().items():
            best[name], trials[name] = fastest(name, candidates)
    cases = {
        # With rounds, and iterations in each: with minibatches of 1 they take seconds.
        "minibatches of 1, float32": (dict.fromkeys(("trl", "textgym"), default), ">= 2.5", 8, 1),
        "each at its defaults": ({"trl": default, "textgym": ours}, None, 8, 1),
        "trl at its defaults, textgym at its best settings": (
            {"trl": default, "textgym": best["textgym"]},
            None,
            8,
            1,
        ),
        "each at its best settings": (best, ">= 2", 12, 3),
    }
    prompts = draw_prompts(8 if quick else 40 * NUM_ENVS, seed=0)
    rows = []
    with contextlib.ExitStack() as stack:
        # All processes start at once, and wait for their turns.
        processes = [
            stack.enter_context(Trl(prompts, **settings["trl"])) for settings, *_ in cases.values()
        ]
        for trl, (case, (settings, goal, *numbers)) in zip(processes, cases.items(), strict=True):
            rounds, iterations = (1, 1) if quick else numbers
            ratio, detail = _compare(trl, settings, rounds, iterations)
            quantity = "seconds of a PPO iteration: trl / textgym"
            rows.append(result("iteration", case, quantity, ratio, goal, **detail))
    rows[-1]["detail"]["trials"] = trials
    return rows


def _compare(
    trl: Trl, settings: dict[str, dict[str, Any]], rounds: int, iterations: int
) -> tuple[tuple[float, float, float], dict[str, Any]]:
    """The ratio of seconds per iteration, and its details."""
    detail: dict[str, Any] = {"largest_difference": check(trl), "versions": trl.versions}
    sides: dict[str, Side] = {"trl": trl, "textgym": Textgym(**settings["textgym"])}
    take_turns(sides, rounds=1, iterations=1)  # warms up
    rows = take_turns(sides, rounds, iterations)
    seconds = {name: [_mean(block, "seconds") for block in blocks] for name, blocks in rows.items()}
    detail |= {"settings": settings, "iterations_per_round": iterations, "seconds": seconds}
    of_trl = [row for block in rows["trl"] for row in block]
    detail["trl_parts"] = {part: _mean(of_trl, part) for part in ("generate", "reward", "step")}
    detail["episode_length"] = {
        name: _mean((row for block in blocks for row in block), "length")
        for name, blocks in rows.items()
    }
    return Comparison(seconds).ratio("trl", "textgym"), detail


def _candidates() -> dict[str, list[dict[str, Any]]]:
    """Settings that each side may choose from; the larger the minibatch, the faster both are."""
    common = [
        {"minibatch_size": NUM_ENVS, "bfloat16": bfloat16, "threads": threads}
        for bfloat16, threads in product(
            [False, True] if has_bfloat16() else [False], thread_numbers()
        )
    ]
    trl = [{**TRL_FAST, **settings} for settings in common]
    eager = [{**settings, "attention": "eager"} for settings in trl if settings["bfloat16"]]
    return {"trl": trl + eager, "textgym": common}


def fastest(name: str, candidates: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict]]:
    """The settings with the shortest iterations, and the seconds of all."""
    iterations, trials = 4, []
    for settings in candidates:
        with contextlib.ExitStack() as stack:
            if name == "trl":
                prompts = draw_prompts(NUM_ENVS * (iterations + 1), seed=1)
                side: Side = stack.enter_context(Trl(prompts, **settings))
            else:
                side = Textgym(**settings)
            side.run(1)  # warms up
            seconds = float(np.median([row["seconds"] for row in side.run(iterations)]))
        trials.append({**settings, "seconds": seconds})
    return candidates[int(np.argmin([trial["seconds"] for trial in trials]))], trials


def _mean(rows: Iterable[dict[str, float]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
