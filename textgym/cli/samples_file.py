"""Completions that a run keeps while it trains, in the file ``samples.jsonl`` of its folder.

At the start, with each checkpoint and at the end, the policy completes the same prompts, with the
same random numbers, which training does not use. So training goes on as if there were no samples,
and what changes between them is what was learned.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from textgym.agents import Agent
    from textgym.samples import Sample

__all__ = ["SAMPLES", "KeptSample", "SampleKeeper", "read_samples"]

SAMPLES = "samples.jsonl"
"""File of the samples, a JSON object per completion."""
_SEEDS = (20_260_101, 20_260_102)  # of prompts and of tokens


@dataclass(frozen=True)
class KeptSample:
    """A completion that a run has kept.

    Attributes:
        iteration: Iterations that the policy had learned from.
        sample: The completion, with score and credit.
        prompt_ids: Tokens of the prompt.
        completion_ids: Tokens of the completion.
    """

    iteration: int
    sample: Sample
    prompt_ids: list[int]
    completion_ids: list[int]


class SampleKeeper:
    """Keeps some completions of an agent's policy.

    Args:
        agent: The agent, with its environment.
        number: Completions to keep each time.

    Raises:
        InvalidArgumentError: If the run that goes on has a damaged file.
    """

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent, self._number = agent, number
        self._file = agent.log_dir / SAMPLES
        self._last: int | None = None
        if agent.processes.is_main and self._file.is_file():
            # What came after the checkpoint will come again.
            kept = read_samples(agent.log_dir, "resume")
            kept = [one for one in kept if one.iteration <= len(agent.history)]
            unfinished = self._file.with_suffix(".unfinished")
            unfinished.write_text(_as_lines(kept), encoding="utf-8")
            unfinished.replace(self._file)
            self._last = max((one.iteration for one in kept), default=None)
        self._last = agent.processes.of_main(self._last)

    def keep_if_due(self) -> None:
        """Keep samples if the agent has just written a checkpoint."""
        if self._agent.has_checkpoint:
            self.keep()

    def keep(self) -> None:
        """Keep samples of the policy as it is, unless that was done.

        All processes must call this: with sharded weights, each has its part in every step. They
        all draw the same tokens, and the main one writes.
        """
        import torch

        from textgym.agents import collect_episodes
        from textgym.samples import samples_of

        agent, iteration = self._agent, len(self._agent.history)
        if not self._number or iteration == self._last or agent.env is None:
            return
        of_prompts, of_tokens = (torch.Generator().manual_seed(seed) for seed in _SEEDS)
        with torch.no_grad():
            num_episodes = agent.env.num_envs * math.ceil(self._number / agent.env.num_envs)
            rollout = collect_episodes(agent.policy, agent.env, num_episodes, of_tokens, of_prompts)
        self._last = iteration
        if agent.processes.is_main:
            base: Any = agent.env.unwrapped
            samples = samples_of(rollout, base.tokenizer, range(self._number))
            num_steps = rollout.completion_mask.shape[1]
            kept = []
            for row, sample in enumerate(samples):
                ids, mask = rollout.input_ids[row], rollout.attention_mask[row]
                prompt, completion = (
                    ids[part][mask[part]].tolist()
                    for part in (slice(-num_steps), slice(-num_steps, None))
                )
                kept.append(KeptSample(iteration, sample, prompt, completion))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_as_lines(kept))


def read_samples(folder: Path, argument: str) -> list[KeptSample]:
    """Read the samples of a run; of a run that is under way, those that are whole.

    Args:
        folder: The run's.
        argument: The flag that named it, for errors.

    Returns:
        In the order of training; empty if the run has kept none.

    Raises:
        InvalidArgumentError: If the file is damaged.
    """
    from textgym.samples import Sample

    file = folder / SAMPLES
    if not file.is_file():
        return []
    try:
        return [
            KeptSample(
                int(row["iteration"]),
                Sample(
                    str(row["prompt"]),
                    tuple(map(str, row["pieces"])),
                    tuple(map(float, row["credit"])),
                    float(row["score"]),
                ),
                [int(token) for token in row["prompt_ids"]],
                [int(token) for token in row["completion_ids"]],
            )
            for row in _rows(file)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        remedy = f"its {SAMPLES} is damaged ({what}); remove the file"
        raise InvalidArgumentError(argument, str(folder), remedy) from None


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line without its end is still being written."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _as_lines(kept: Iterable[KeptSample]) -> str:
    return "".join(json.dumps(_as_row(one), ensure_ascii=False) + "\n" for one in kept)


def _as_row(kept: KeptSample) -> dict[str, Any]:
    sample = kept.sample
    return {
        "iteration": kept.iteration,
        "prompt": sample.prompt,
        "completion": "".join(sample.pieces),
        "score": sample.score,
        "pieces": sample.pieces,
        "credit": [round(credit, 6) for credit in sample.credit],
        "prompt_ids": kept.prompt_ids,
        "completion_ids": kept.completion_ids,
    }
