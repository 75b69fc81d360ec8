"""``textgym demo``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from textgym.cli.flags import check_output, check_policy, naming_the_policy

__all__ = ["DemoCommand"]


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """Compare sparse reward, ABC and prefix-score shaping on real text, in a few minutes.

    Trains the embedded language model three times from the same start and seed, and shows scores,
    learning curves, and completions before and after.
    """

    prompts: str = "embedded"
    """Prompts: "embedded", "imdb" (extra textgym[imdb]), a file, or a hub dataset id."""
    output: str | None = None
    """Folder for results, curves and samples, new or empty. None: a fresh one below runs/."""
    iterations: int = 40
    """Iterations of 16 episodes, for each of the three runs."""
    seed: int = 0
    """Seed of all three runs."""
    policy: str = "embedded"
    """Language model to train: "embedded", a folder or a hub id."""
    tokenizer: str | None = None
    """Tokenizer: a folder or a hub id. None: the policy's."""
    reward_model: str = "embedded"
    """Reward model: "embedded", a folder or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the models compute in. auto: bfloat16 if it is faster on this processor."""

    def run(self) -> None:
        """Run the command."""
        from textgym.demo import run_demo

        check_output(self.output)
        check_policy(self.policy)
        tokenizer = self.policy if self.tokenizer is None else self.tokenizer
        arguments = dataclasses.asdict(self) | {"tokenizer": tokenizer}
        with naming_the_policy(self.tokenizer, self.policy):
            run_demo(**arguments)
