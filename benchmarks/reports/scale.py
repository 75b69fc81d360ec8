"""The tables of scale.py: what was measured, and what is counted for models of all sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from counting.cases import CASES, FORWARDS, H100, LARGE, Machine
from counting.memory import Memory, count_memory
from counting.operations import count_operations
from counting.shapes import SHAPES, Shape
from counting.traffic import count_traffic, predict_seconds
from counting.work import Choices
from textgym.benchmark.storage import read_rows
from textgym.benchmark.tables import markdown_table

__all__ = ["KEYS", "write"]

KEYS = ("case",)
GPU = 80e9
"""Bytes of one GPU."""
SECONDS = (
    "iteration of",
    "GFLOP",
    "GB moved",
    "GFLOP/s",
    "GB/s",
    "arithmetic, s",
    "and memory, s",
    "measured, s",
    "measured / predicted",
)
FORWARD = (
    "minibatch of",
    "activations, MB",
    "logits, MB",
    "forward counted, MB",
    "forward measured, MB",
    "update counted, MB",
    "update measured, MB",
)
MEMORY = (
    "weights",
    "gradients, moments",
    "snapshot",
    "reference",
    "reward model",
    "kept",
    "activations",
    "with checkpointing",
    "peak",
    "peak with checkpointing",
    "80 GB GPUs",
)
PREDICTED = (
    "policy",
    "TFLOP, all weights",
    "over the vocabulary",
    "TFLOP, LoRA",
    "s here, all weights",
    "s here, LoRA",
    "s on an H100, all weights",
    "s on an H100, LoRA",
)
FULL = {"is_bfloat16": True, "is_on_cpu": False}
LORA = FULL | {"rank": 16}


def write(output: Path) -> str:
    """Write ``table.md`` from ``iterations.csv``, ``forwards.csv`` and the counts; returns it."""
    iterations = read_rows(output / "iterations.csv", KEYS)
    forwards = read_rows(output / "forwards.csv", KEYS)
    parts = [
        "Seconds are medians over iterations. GB are 10⁹ bytes.",
        "### Whole iterations, measured",
        _table(_measured_seconds(iterations)),
        _table(_measured_memory(iterations)),
        "### One minibatch, measured",
        _table(_measured_forwards(forwards)),
        "### All weights trained, counted",
        _table(_counted_memory(FULL)),
        "### LoRA, counted",
        _table(_counted_memory(LORA)),
        "### Operations and seconds, counted",
        _table(_counted_seconds(iterations)),
    ]
    text = "\n\n".join(parts) + "\n"
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


def _table(lines: list[list[str]]) -> str:
    header, *rows = lines
    return "\n".join(markdown_table(header, rows))


def _by_case(rows: pd.DataFrame, known: object) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each case that was measured, in the order in which the cases are listed."""
    grouped = dict(list(rows.groupby("case")))
    return [(name, grouped[name]) for name in known if name in grouped]  # type: ignore[attr-defined]


# --- What was measured ----------------------------------------------------------------------------


def _measured_seconds(rows: pd.DataFrame) -> list[list[str]]:
    lines = [list(SECONDS)]
    for name, run in _by_case(rows, CASES):
        case = CASES[name]
        arguments = case.policy, case.policy, case.work, case.choices
        operations = count_operations(*arguments).total / 1e9
        gigabytes = count_traffic(*arguments) / 1e9
        # Predicted from the rates at the time of each iteration.
        arithmetic = operations / run["gigaflops"]
        predicted = arithmetic + gigabytes / run["gigabytes_per_second"]
        lines.append(
            [
                name,
                _short(operations),
                _short(gigabytes),
                _short(run["gigaflops"].median()),
                _short(run["gigabytes_per_second"].median()),
                _short(arithmetic.median()),
                _short(predicted.median()),
                _short(run["seconds"].median()),
                f"{(run['seconds'] / predicted).median():.2f}",
            ]
        )
    return lines


def _measured_memory(rows: pd.DataFrame) -> list[list[str]]:
    lines = [["memory of", "kept, GB", "peak, GB", "measured, GB", "measured / counted"]]
    for name, run in _by_case(rows, CASES):
        case = CASES[name]
        counted = count_memory(case.policy, case.policy, case.work, case.choices)
        measured = (run["peak_mib"].max() - run["start_mib"].max()) * 2**20
        lines.append(
            [
                name,
                _gigabytes(counted.kept),
                _gigabytes(counted.peak),
                _gigabytes(measured),
                f"{measured / counted.peak:.2f}",
            ]
        )
    return lines


def _measured_forwards(rows: pd.DataFrame) -> list[list[str]]:
    lines = [list(FORWARD)]
    for name, run in _by_case(rows, FORWARDS):
        case = FORWARDS[name]
        counted = count_memory(case.policy, case.policy, case.work, case.choices)
        logits = case.choices.size * case.work.minibatch * case.work.steps * case.policy.vocabulary
        forward = counted.activations + counted.autocast_copies + logits
        update = counted.update + counted.gradients
        numbers = [
            counted.activations / 1e6,
            logits / 1e6,
            forward / 1e6,
            run["forward_megabytes"].iloc[0],
            update / 1e6,
            run["update_megabytes"].iloc[0],
        ]
        lines.append([name, *(f"{number:,.0f}" for number in numbers)])
    return lines


# --- What is counted ------------------------------------------------------------------------------


def _counted_memory(settings: dict) -> list[list[str]]:
    kind = "LoRA" if settings.get("rank") else "all weights"
    lines = [[f"{kind}: policy", *MEMORY]]
    for shape in SHAPES.values():
        plain = _count(shape, Choices(**settings))
        sparing = _count(shape, Choices(**settings, recomputes=True))
        numbers = [
            plain.weights,
            plain.gradients + plain.moments,
            plain.snapshot,
            plain.reference,
            plain.reward_model,
            plain.kept,
            plain.activations,
            sparing.activations,
            plain.peak,
            sparing.peak,
        ]
        lines.append([_named(shape), *map(_gigabytes, numbers), _gpus(sparing, kind)])
    return lines


def _count(shape: Shape, choices: Choices) -> Memory:
    return count_memory(shape, shape, LARGE, choices)


def _gpus(counted: Memory, kind: str) -> str:
    """On how many GPUs it fits; minibatches of 8 texts have parts for 8 of them at most."""
    if counted.peak <= GPU:
        return "1"
    if kind == "LoRA":  # Adapters cannot be sharded.
        return "does not fit"
    fitting = [number for number in (2, 4, 8) if counted.sharded(number) <= GPU]
    needed = _gigabytes(counted.sharded(8))
    return f"{fitting[0]}, sharded" if fitting else f"does not fit ({needed} on each of 8, sharded)"


def _counted_seconds(rows: pd.DataFrame) -> list[list[str]]:
    here = _this_machine(rows)
    lines = [list(PREDICTED)]
    for shape in SHAPES.values():
        full, lora = Choices(**FULL), Choices(**LORA)
        of_full, of_lora = (count_operations(shape, shape, LARGE, one) for one in (full, lora))
        seconds = [
            "–"
            if machine is None
            else _short(
                predict_seconds(
                    shape,
                    shape,
                    LARGE,
                    choices,
                    machine.operations_per_second,
                    machine.bytes_per_second,
                )
            )
            for machine in (here, H100)
            for choices in (full, lora)
        ]
        lines.append(
            [
                _named(shape),
                _short(of_full.total / 1e12),
                f"{of_full.over_vocabulary / of_full.total:.0%}",
                _short(of_lora.total / 1e12),
                *seconds,
            ]
        )
    return lines


def _this_machine(rows: pd.DataFrame) -> Machine | None:
    """One thread of the machine that measured GPT-2 in bfloat16; None if it did not."""
    run = rows[rows["case"] == "GPT-2, bfloat16"]
    if run.empty:
        return None
    return Machine(
        operations_per_second=1e9 * run["gigaflops"].median(),
        bytes_per_second=1e9 * run["gigabytes_per_second"].median(),
    )


def _named(shape: Shape) -> str:
    billions = shape.parameters / 1e9
    size = f"{billions:.1f} B" if billions >= 1 else f"{1e3 * billions:.1f} M"
    return f"{shape.name} ({size})"


def _gigabytes(num_bytes: float) -> str:
    return _short(num_bytes / 1e9)


def _short(number: float) -> str:
    """Three significant digits at most."""
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{min(digits, 3)}f}"
