"""What the demo shows and writes besides its table: progress and sample completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from textgym.demo.protocol import METHODS, Method
from textgym.samples import Sample

__all__ = ["MethodProgress", "Run", "print_samples", "write_samples"]

_LABEL_WIDTH = max(len(method.label) for method in METHODS)


@dataclass(frozen=True)
class Run:
    """One method's training.

    Attributes:
        method: The method.
        rows: Scalars, one row per iteration.
        before: Samples before training.
        after: Samples after training, for the same prompts.
    """

    method: Method
    rows: list[dict[str, float]]
    before: list[Sample]
    after: list[Sample]


class MethodProgress:
    """One bar per method with its live score and KL; plain lines if there is no terminal.

    Args:
        console: Where to show it.
        iterations: Length of each run.
    """

    def __init__(self, console: Console, iterations: int) -> None:
        self.console, self.iterations = console, iterations
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("score {task.fields[score]}  KL {task.fields[kl]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = {
            method.name: self.bars.add_task(
                f"{method.label:<{_LABEL_WIDTH}}",
                start=False,
                total=iterations,
                score="    –",
                kl="   –",
            )
            for method in METHODS
        }

    def start(self, method: Method) -> None:
        """Start the clock of a method."""
        self.bars.start_task(self._tasks[method.name])

    def update(self, method: Method, row: Mapping[str, float]) -> None:
        """Show an iteration that a method has finished."""
        done = int(row["time/iteration"])
        score, kl = f"{row['rollout/score_mean']:+.2f}", f"{row['rollout/kl']:.2f}"
        self.bars.update(self._tasks[method.name], completed=done, score=score, kl=kl)
        if not self.console.is_terminal and (done % 10 == 0 or done == self.iterations):
            self.console.print(
                f"{method.label:<{_LABEL_WIDTH}}  iteration {done:>3}/{self.iterations}  "
                f"score {score}  KL {kl}"
            )


def print_samples(console: Console, runs: Sequence[Run]) -> None:
    """Print each prompt's completions, before training and after it."""
    console.print(
        "\nCompletions before and after training: score, prompt, tokens coloured by their credit "
        "(blue: positive; vermilion and underlined: negative; full colour: the largest credit of "
        "that completion).\n"
    )
    abc = next(run for run in runs if run.method.name == "abc")
    for i, sample in enumerate(abc.before):
        lines = [(f"before, credit of {abc.method.label}", sample)]
        lines += [(f"after {run.method.label}", run.after[i]) for run in runs]
        for label, shown in lines:
            console.print(Text().append(f"{label:<22}", "bold").append(shown.to_text()))
        console.print()


def write_samples(path: Path, runs: Sequence[Run]) -> None:
    """Write the samples as plain text, the credit of each token in brackets behind it."""
    lines = [
        "score  prompt | completion, the credit of each token in brackets behind it",
        "Credit shares out what the score is above that of the prompt alone.",
    ]
    for run in runs:
        for stage, samples in (("before", run.before), ("after", run.after)):
            lines += ["", f"{run.method.label}, {stage} training"]
            lines += [sample.to_plain() for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
