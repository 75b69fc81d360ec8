"""What do read-outs cost on top of a score?

``RewardModel.read`` with the attention row and the prefix scores, beside

- ``plain``: the same read without read-outs;
- ``row``: with the attention row alone;
- ``library``: the model's own call in transformers, which gives the score and nothing else;
- ``eager``: the usual way to get an attention row: a copy of the model on the eager kernel, called
  with ``output_attentions=True``; of its maps only one row of the last layer is used.

Peak memory is that of tensors, beyond the model; see :mod:`harness.profiling`. The models' own
calls keep a cache of keys and values unless they are told otherwise, and users rarely do that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.profiling import peak_memory
from harness.timing import side_by_side
from speed import models
from speed.ratios import result
from textgym.models import AttentionRow, Completions, PrefixScores, RewardModel

__all__ = ["measure"]

BOTH = "row and prefix scores"


@dataclass(frozen=True)
class Case:
    """A model, a batch, and how often they are timed: less where a call takes seconds."""

    model: str
    batch: int
    num_tokens: int
    rounds: int


CASES = [
    *(
        Case(model, 8, num_tokens, rounds)
        for model in ("gpt2-small", "llama-small")
        for num_tokens, rounds in ((64, 9), (256, 4), (512, 3))
    ),
    Case("embedded", 16, 32, 21),
    Case("embedded", 64, 32, 15),
    Case("embedded", 8, 240, 15),
]
QUICK = [Case("gpt2-small", 2, 8, 2), Case("llama-small", 2, 8, 2), Case("embedded", 2, 8, 2)]


def measure(quick: bool = False) -> list[dict]:
    """Ratios of time and of peak memory, in every case.

    Args:
        quick: Tiny sizes, in seconds.
    """
    rows, name, reward_model = [], None, None
    for case in QUICK if quick else CASES:
        if case.model != name:  # One model at a time in memory.
            reward_model = None
            name, reward_model = case.model, models.reward_model(case.model, quick)
        assert reward_model is not None
        rows += _measure_case(case, reward_model, min_seconds=0.0 if quick else 0.2)
    return rows


def _measure_case(case: Case, reward_model: RewardModel, min_seconds: float) -> list[dict]:
    texts = models.texts(case.batch, case.num_tokens)
    functions = ways(reward_model, texts)
    if case.num_tokens in (256, 512):  # Seconds per call: the rest is seen at 64 tokens.
        del functions["row"], functions["library"]
    else:
        _check_agreement(functions)
    compared = side_by_side(functions, case.rounds, min_seconds=min_seconds)
    megabytes = {name: peak_memory(run) for name, run in functions.items()}
    label = f"{case.model} {case.batch}x{case.num_tokens} float32"
    detail = {
        "seconds": compared.seconds,
        "tokens_per_second": {
            name: round(int(texts.attention_mask.sum()) / compared.median(name), 1)
            for name in functions
        },
    }
    rows = []
    for name, against, goal in (
        (BOTH, "plain", "<= 1.02"),
        (BOTH, "library", None),
        ("row", "plain", None),
        ("plain", "library", None),
        ("eager", "plain", None),
    ):
        if name in functions and against in functions:
            quantity = f"time: {name} / {against}"
            ratio = compared.ratio(name, against)
            rows.append(result("readout", label, quantity, ratio, goal, **detail))
            detail = {}  # The raw numbers stand in the first row of a case.
    for name, against, goal in (
        (BOTH, "plain", "<= 1.01"),
        (BOTH, "library", None),
        ("eager", "plain", None),
    ):
        if name in megabytes and against in megabytes:
            value = megabytes[name] / megabytes[against]
            detail = {"megabytes": {key: round(value, 3) for key, value in megabytes.items()}}
            quantity = f"peak memory: {name} / {against}"
            rows.append(result("readout", label, quantity, (value,) * 3, goal, **detail))
    return rows


def ways(reward_model: RewardModel, texts: Completions) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; see the module docstring."""
    model = reward_model.model
    inputs = {"input_ids": texts.input_ids, "attention_mask": texts.attention_mask.long()}
    rows, last = torch.arange(len(texts)), texts.attention_mask.sum(1) - 1
    eager_model = copy.deepcopy(model)
    eager_model.set_attn_implementation("eager")

    @torch.inference_mode()
    def library() -> Tensor:
        return model(**inputs).logits

    @torch.inference_mode()
    def eager() -> tuple[Tensor, Tensor]:
        output = eager_model(**inputs, output_attentions=True)
        return output.logits, output.attentions[-1].mean(dim=1)[rows, last]

    return {
        "plain": lambda: reward_model.read(texts),
        "row": lambda: reward_model.read(texts, (AttentionRow(),)),
        BOTH: lambda: reward_model.read(texts, (AttentionRow(), PrefixScores())),
        "library": library,
        "eager": eager,
    }


def _check_agreement(functions: dict[str, Callable[[], Any]]) -> None:
    """Make sure that all ways agree; this is also their first call, which sets things up."""
    first = {name: run() for name, run in functions.items()}
    both, plain, (logits, row) = first[BOTH], first["plain"], first["eager"]
    torch.testing.assert_close(both.score, plain.score, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[AttentionRow()], row, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(first["library"], logits, atol=1e-3, rtol=1e-3)
