"""Credit by perturbation: what the score becomes when tokens are deleted from the completion."""

from __future__ import annotations

import torch
from torch import Tensor

from textgym.credit.base import HindsightCredit
from textgym.credit.registry import register_credit_assigner
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, RewardModel, ScoredCompletions

__all__ = ["OcclusionCredit", "check_whole_number", "reward_model_of", "score_subsets"]


def reward_model_of(scored: ScoredCompletions) -> RewardModel:
    """The reward model that scored a batch, and that can score more texts.

    Raises:
        InvalidArgumentError: If the batch does not name it.
    """
    if scored.reward_model is None:
        raise InvalidArgumentError(
            "scored.reward_model",
            None,
            "this assigner has further texts scored: pass what reward_model.read returned",
        )
    return scored.reward_model


def check_whole_number(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return ``value``.

    Raises:
        InvalidArgumentError: If it is not a whole number from ``least`` to ``most``.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        upto = "" if most is None else f" and at most {most}"
        raise InvalidArgumentError(name, value, f"must be a whole number of at least {least}{upto}")
    return value


def score_subsets(scored: ScoredCompletions, keep: Tensor, max_rows: int = 512) -> Tensor:
    """Score the texts of which only some completion tokens remain.

    The other completion tokens are deleted, not replaced: what follows moves up. Prompt tokens
    always stay. A prompt [p0, p1], a completion [c0, c1, c2] and two subsets::

        attention_mask    [1, 1, 1, 1, 1]
        completion_mask   [0, 0, 1, 1, 1]
        keep              [[0, 0, 1, 0, 1],      scores p0 p1 c0 c2
                           [0, 0, 0, 0, 0]]      scores p0 p1

    Each distinct subset of a row goes through the model once, however often it is asked for.

    Args:
        scored: A batch that a reward model has read.
        keep: Which completion tokens remain, shape (batch, num_subsets, num_tokens), bool; what it
            says about other tokens is ignored.
        max_rows: Texts per forward pass, at most: it bounds the memory.

    Returns:
        The reward model's own scores, shape (batch, num_subsets), float32.

    Raises:
        InvalidArgumentError: If the batch does not name its reward model, the shape of ``keep`` is
            another one, or a subset leaves nothing of a text whose prompt is empty.
    """
    reward_model = reward_model_of(scored)
    batch, num_tokens = scored.input_ids.shape
    if keep.ndim != 3 or keep.shape[0] != batch or keep.shape[2] != num_tokens:
        raise InvalidArgumentError(
            "keep", tuple(keep.shape), f"its shape must be ({batch}, num_subsets, {num_tokens})"
        )
    kept = scored.completion_mask[:, None] & keep.to(scored.completion_mask.device)
    distinct, index, num_texts = [], [], 0
    for subsets in kept:
        texts, position = subsets.unique(dim=0, return_inverse=True)
        distinct.append(texts)
        index.append(position + num_texts)
        num_texts += len(texts)
    completion_mask = torch.cat(distinct)  # (num_texts, num_tokens)
    counts = torch.tensor([len(texts) for texts in distinct], device=kept.device)
    owner = torch.arange(batch, device=kept.device).repeat_interleave(counts)  # (num_texts,)
    attention_mask = completion_mask | scored.prompt_mask[owner]
    length = attention_mask.sum(1)
    if bool((length == 0).any()):
        raise InvalidArgumentError(
            "keep", "no token", "an empty text has no score: give every prompt at least one token"
        )
    scores = torch.empty(num_texts, device=kept.device)
    # Texts of like length go together: a forward pass is as wide as the longest of its texts.
    for rows in length.argsort(stable=True).split(max_rows):
        texts = Completions(
            scored.input_ids[owner[rows]], attention_mask[rows], completion_mask[rows]
        )
        scores[rows] = reward_model.read(texts).score
    return scores[torch.stack(index)]


@register_credit_assigner
class OcclusionCredit(HindsightCredit):
    """What the score loses when a token is deleted.

    attribution_t = R(text) - R(text without token t), with R the reward model's own score: this is
    erasure (Li et al., 2016, arXiv 1612.08220), the occlusion of Zeiler & Fergus (2014, arXiv
    1311.2901) with a window of one token. Two tokens that say the same hide each other: deleting
    either loses nothing.

    Cost: T + 1 texts per completion of T tokens: the text without each token, and the whole text
    once more, because ``scored.score`` may come from another reward function, and a difference
    means something only between scores of one model.

    Guarantee: at γ = 1 every completion keeps its return. The attributions have no fixed sum; what
    they leave of the score goes to the last token. On a score that is a sum over the tokens they
    are exact.

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        max_rows: Texts per forward pass, at most.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        The score is the sum of what the tokens are worth: 0 for each of the prompt, and 0.5, 1,
        -1, 0.5 and 1 for those of the completion.

        >>> from textgym.credit._additive import AdditiveRewardModel
        >>> from textgym.credit._example import five_tokens
        >>> worth = torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, -1.0, 0.5, 1.0])  # by token id
        >>> scored = five_tokens(reward_model=AdditiveRewardModel(worth))
        >>> OcclusionCredit(beta=1.0)(scored)[0, 2:]
        tensor([ 0.5000,  1.0000, -1.0000,  0.5000,  1.0000])
        >>> OcclusionCredit(beta=0.5)(scored)[0, 2:]
        tensor([ 0.2500,  0.5000, -0.5000,  0.2500,  1.5000])
    """

    name = "occlusion"
    paper = "arXiv 1612.08220"
    signed = True
    sums_to = "no fixed sum"
    cost = "T + 1 forward passes"

    def __init__(self, beta: float = 0.8, gamma: float = 1.0, *, max_rows: int = 512) -> None:
        super().__init__(beta, gamma)
        self.max_rows = check_whole_number("max_rows", max_rows, 1)

    def forward_passes(self, num_tokens: int) -> int:
        """One text without each token, and the whole text."""
        return num_tokens + 1

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """R(text) - R(text without the token), shape (batch, num_tokens)."""
        num_tokens = scored.input_ids.shape[1]
        others = ~torch.eye(num_tokens, dtype=torch.bool)
        everything = torch.ones(1, num_tokens, dtype=torch.bool)
        keep = torch.cat([everything, others]).expand(len(scored), -1, -1)
        scores = score_subsets(scored, keep, self.max_rows)  # (batch, 1 + num_tokens)
        # Outside the completion nothing was deleted, and the difference is exactly 0.
        return scores[:, :1] - scores[:, 1:]
