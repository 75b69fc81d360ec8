"""Extra passes through the models, and time per completion relative to plain scoring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from harness.timing import side_by_side
from textgym.credit import CreditAssigner
from textgym.memory import keep_freed_memory
from textgym.models import Completions

from .task import Methods, Task

__all__ = ["count_passes", "measure"]

SIZES = (("planted", 8), ("embedded", 16), ("embedded", 48))
"""Task and number of new tokens."""


def measure(output: Path, methods: Methods, rounds: int = 15, min_seconds: float = 0.1) -> None:
    """Write cost.csv: counted passes, and seconds beside plain scoring in every round.

    Args:
        output: The folder.
        methods: What is measured.
        rounds: How often each method takes turns with plain scoring; one round for a method that
            reads each completion more than once.
        min_seconds: How long either runs in a round, at least.
    """
    keep_freed_memory()
    results: list[dict[str, Any]] = []
    for name, new_tokens in SIZES:
        task = Task(name)
        prompts = {} if name == "planted" else {"prompts": "imdb"}
        completions = task.sample(
            64, min_new_tokens=new_tokens, max_new_tokens=new_tokens, **prompts
        ).select(slice(0, 16))
        plain = partial(task.reward_model.read, completions)
        for method, definition in methods.items():
            assigner = task.assigner(*definition)
            run = partial(_read_and_assign, task, completions, assigner)
            forward, backward = count_passes(task, run)
            is_slow = assigner.forward_passes(new_tokens) > 1
            times = side_by_side(
                {"plain": plain, "method": run}, 1 if is_slow else rounds, min_seconds=min_seconds
            ).seconds
            results += [
                {
                    "task": name,
                    "new_tokens": new_tokens,
                    "method": method,
                    "extra_forward": forward / len(completions) - 1,
                    "backward": backward / len(completions),
                    "round": number,
                    "plain_seconds": before,
                    "seconds": after,
                }
                for number, (before, after) in enumerate(
                    zip(times["plain"], times["method"], strict=True)
                )
            ]
    pd.DataFrame(results).round(6).to_csv(output / "cost.csv", index=False)


def _read_and_assign(task: Task, completions: Completions, assigner: CreditAssigner) -> object:
    return assigner(task.reward_model.read(completions, assigner.readouts))


def count_passes(task: Task, run: Callable[[], object]) -> tuple[int, int]:
    """Texts that go through reward model and policy during a call, forwards and backwards.

    The function is called twice and the second call is counted: a first read-out of a kind checks
    the model with a text of its own.
    """
    run()
    counts = [0, 0]

    def forward(module: Any, arguments: Any, keywords: dict[str, Any], result: Any) -> None:
        values = keywords.get("input_ids", keywords.get("inputs_embeds"))
        assert values is not None
        counts[0] += len(values)
        hidden = result.last_hidden_state
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: counts.__setitem__(1, counts[1] + len(gradient)))

    bodies = [task.reward_model.model.base_model, task.policy.base_model]
    handles = [body.register_forward_hook(forward, with_kwargs=True) for body in bodies]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts[0], counts[1]
