"""Where credit and potentials are measured from: zero, or what the prompt alone is worth.

The prompt has a score of its own. No action changes it, so to an agent it is noise. Measured from
the prompt, every return falls by a constant per prompt. That is a baseline of the start state: it
changes no ranking of policies, no optimal action and no expected policy gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError
from textgym.models import PrefixScores, Readout, ScoredCompletions

__all__ = ["Start", "check_start", "less_start_values", "prompt_scores", "start_readouts"]

Start = Literal["zero", "prompt"]
"""Where returns begin: at 0, so that they equal the score; or at the value of the prompt alone."""


def check_start(start: Start) -> Start:
    """Return ``start``.

    Raises:
        InvalidArgumentError: If it is neither "zero" nor "prompt".
    """
    if start not in ("zero", "prompt"):
        raise InvalidArgumentError("start", start, 'pass "zero" or "prompt"')
    return start


def start_readouts(start: Start) -> frozenset[Readout]:
    """What :func:`prompt_scores` needs, if it is needed."""
    return frozenset({PrefixScores()}) if start == "prompt" else frozenset()


def prompt_scores(scored: ScoredCompletions) -> Tensor:
    """Score of each prompt alone, s_0.

    Args:
        scored: Completions with ``PrefixScores``.

    Returns:
        float32, shape (batch,), 0 for an empty prompt.
    """
    column = torch.arange(scored.input_ids.shape[1], device=scored.input_ids.device)
    last = torch.where(scored.prompt_mask, column, -1).max(dim=1, keepdim=True).values
    scores = scored[PrefixScores()].gather(1, last.clamp(min=0))
    return scores.masked_fill(last < 0, 0.0)[:, 0]


def less_start_values(
    scored: ScoredCompletions, start_values: Tensor, gamma: float
) -> ScoredCompletions:
    """Take the start values off the scores, before the scores are shared out.

    The score becomes R - v·γ^-(T-1), with T the number of tokens. Seen from the start, where the
    score is worth γ^(T-1)·R, exactly v is missing, however long the completion.

    Args:
        scored: Finished completions.
        start_values: v, shape (batch,).
        gamma: Discount factor, in (0, 1].

    Returns:
        The same completions and read-outs with the new scores.
    """
    steps_to_go = scored.completion_mask.sum(dim=1) - 1  # at the first token
    return replace(scored, score=scored.score - start_values * gamma ** -steps_to_go.float())
