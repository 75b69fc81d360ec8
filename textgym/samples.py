"""Sample completions with the credit of each token, for people to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from textgym.rendering import (
    credit_html,
    credit_limit,
    credit_text,
    legend_html,
    token_pieces,
    visible,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textgym.agents import Rollout

__all__ = ["Sample", "samples_of"]


@dataclass(frozen=True)
class Sample:
    """A finished completion.

    Attributes:
        prompt: Text of the prompt.
        pieces: Text of each generated token.
        credit: Credit of each generated token.
        score: Score of the completion.
    """

    prompt: str
    pieces: tuple[str, ...]
    credit: tuple[float, ...]
    score: float

    def to_text(self) -> Text:
        """One line: the score, the prompt, and the tokens coloured by their credit."""
        prompt = visible(self.prompt, newlines=True)
        pieces = [visible(piece, newlines=True) for piece in self.pieces]
        return Text(f"{self.score:+6.2f}  ").append(credit_text(prompt, pieces, self.credit))

    def to_html(self) -> str:
        """The score, the prompt, the tokens coloured by their credit, and the legend."""
        return (
            f'<div class="sample">{credit_html(self.prompt, self.pieces, self.credit)}'
            f'<span class="textgym-score">score {self.score:+.2f}</span>'
            f"{legend_html(credit_limit(self.credit))}</div>"
        )

    def to_plain(self) -> str:
        """One line: the score, the prompt, and the tokens, each followed by its credit."""
        tokens = (
            f"{visible(piece, newlines=True)}[{credit:+.2f}]"
            for piece, credit in zip(self.pieces, self.credit, strict=True)
        )
        return f"{self.score:+6.2f}  {visible(self.prompt, newlines=True)} |{''.join(tokens)}"


def samples_of(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, rows: Iterable[int]
) -> list[Sample]:
    """Turn episodes of a rollout into samples.

    Args:
        rollout: Finished episodes from an environment with
            :class:`textgym.wrappers.CreditAssignment`.
        tokenizer: The environment's tokenizer.
        rows: Indices of the episodes.
    """
    num_steps = rollout.completion_mask.shape[1]
    samples = []
    for row in rows:
        mask = rollout.completion_mask[row]
        ids = rollout.input_ids[row, -num_steps:][mask].tolist()
        samples.append(
            Sample(
                prompt=rollout.prompts[row],
                pieces=tuple(token_pieces(tokenizer, ids)),
                credit=tuple(rollout.credit[row][mask].tolist()),
                score=rollout.scores[row].item(),
            )
        )
    return samples
