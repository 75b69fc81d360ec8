"""``textgym train-reward``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from textgym.checks import check_whole_number
from textgym.cli.console import make_console
from textgym.cli.flags import check_output
from textgym.errors import InvalidArgumentError

__all__ = ["TrainRewardCommand"]


@dataclass(frozen=True, kw_only=True)
class TrainRewardCommand:
    """Train a reward model from pairs (chosen, rejected) or from labelled texts.

    Writes a folder that `reward_model=` takes, with the accuracy on examples that were held out.
    """

    data: Annotated[str, tyro.conf.Positional]
    """A JSONL, CSV or Parquet file or a hub dataset id, with the columns chosen and rejected (and
    prompt, margin) or text and label; or "imdb", the reviews of textgym[imdb]."""
    base: str = "embedded"
    """Model to start from: "embedded" for the embedded language model, a folder or a hub id."""
    output: Path = Path("reward_model")
    """Folder for the reward model."""
    epochs: float = 1.0
    """Passes over the examples."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW."""
    batch_size: int = 32
    """Examples per step."""
    max_length: int = 256
    """Longest text in tokens; longer ones are cut at the end."""
    prefix_share: float = 0.5
    """Share of the examples that are cut at a random token, so that the scores of beginnings mean
    something. Causal shaping depends on them."""
    center_coef: float = 0.01
    """Weight of the square of the two scores' sum, which keeps pairs' scores around zero."""
    limit: int | None = None
    """Use only so many examples, the first ones."""
    held_out_one_in: int = 20
    """One example in so many is held out, by a checksum of its text."""
    seed: int = 0
    """Seed of the head, of the order and of the cuts."""
    device: str = "cpu"
    """Device to train on, by its torch name."""

    def run(self) -> None:
        """Run the command."""
        self._check()
        from textgym.models.loading import parse_device
        from textgym.reward_training import (
            Pair,
            RewardRecipe,
            fit_reward_model,
            load_examples,
            split_examples,
        )

        recipe = RewardRecipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            max_length=self.max_length,
            prefix_share=self.prefix_share,
            center_coef=self.center_coef,
            seed=self.seed,
        )
        parse_device(self.device)
        console = make_console()
        examples: Any = load_examples(self.data)[: self.limit]
        train, held_out = split_examples(examples, self.held_out_one_in)
        kind = "pairs" if isinstance(train[0], Pair) else "labelled texts"
        console.print(f"{len(train):,} {kind} to train on, {len(held_out):,} held out")
        evaluation = fit_reward_model(
            self.base, train, held_out, self.output, recipe, self.device, source=self.data
        )
        table = Table("share of the text", "accuracy", title="held out")
        for share, accuracy in evaluation["accuracy"].items():
            table.add_row(f"{float(share):.0%}", f"{accuracy:.1%}")
        console.print(table)
        console.print(
            f"log loss {evaluation['log_loss']:.3f}, "
            f"calibration error {evaluation['calibration_error']:.3f}, "
            f"score {evaluation['score_mean']:+.2f} ± {evaluation['score_std']:.2f}"
        )
        console.print(f"reward model  {self.output}", soft_wrap=True)

    def _check(self) -> None:
        check_whole_number("held_out_one_in", self.held_out_one_in, 2)
        if self.limit is not None:
            check_whole_number("limit", self.limit, 1)
        check_output(self.output)
        if self.output.exists() and any(self.output.iterdir()):
            raise InvalidArgumentError(
                "output", str(self.output), "is a folder that is not empty; choose another"
            )
