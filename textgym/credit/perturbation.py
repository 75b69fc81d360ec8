"""Credit by perturbation: how the score changes when tokens of the completion are deleted."""

from __future__ import annotations

import torch
from torch import Tensor

from textgym.checks import check_whole_number
from textgym.credit.base import HindsightCredit
from textgym.credit.registry import register_credit_assigner
from textgym.credit.start import Start
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, ScoredCompletions, Scorer

__all__ = ["OcclusionCredit", "reward_model_of", "score_subsets"]


def reward_model_of(scored: ScoredCompletions) -> Scorer:
    """Return the reward model that scored a batch, so that it can score more texts.

    Raises:
        InvalidArgumentError: If the batch does not name its reward model.
    """
    if scored.reward_model is None:
        raise InvalidArgumentError(
            "scored.reward_model",
            None,
            "this method scores more texts: pass a batch that reward_model.read returned",
        )
    return scored.reward_model


def score_subsets(scored: ScoredCompletions, keep: Tensor, max_rows: int = 512) -> Tensor:
    """Score texts in which only some of the completion's tokens remain.

    The other completion tokens are deleted, not replaced, and the tokens behind them move up.
    Prompt tokens always stay. A prompt [p0, p1], a completion [c0, c1, c2] and two subsets::

        attention_mask    [1, 1, 1, 1, 1]
        completion_mask   [0, 0, 1, 1, 1]
        keep              [[0, 0, 1, 0, 1],      scores p0 p1 c0 c2
                           [0, 0, 0, 0, 0]]      scores p0 p1

    A subset that occurs several times in a row is scored only once.

    Args:
        scored: A batch that a reward model has scored.
        keep: True at the completion tokens that remain, shape (batch, num_subsets, num_tokens),
            bool. Values at other tokens are ignored.
        max_rows: Largest number of texts in one forward pass; it bounds the memory.

    Returns:
        The reward model's own scores, float32, shape (batch, num_subsets).

    Raises:
        InvalidArgumentError: If the batch does not name its reward model, if ``keep`` has the wrong
            shape, or if a subset leaves no token of a text without a prompt.
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
    # Texts of similar length go together, because a forward pass is as wide as its longest text.
    for rows in length.argsort(stable=True).split(max_rows):
        texts = Completions(
            scored.input_ids[owner[rows]], attention_mask[rows], completion_mask[rows]
        )
        scores[rows] = reward_model.read(texts).score
    return scores[torch.stack(index)]


@register_credit_assigner
class OcclusionCredit(HindsightCredit):
    """How much the score drops when a token is deleted.

    attribution_t = R(text) - R(text without token t), with R the reward model's own score. This is
    erasure (Li et al., 2016, arXiv 1612.08220), or the occlusion of Zeiler & Fergus (2014, arXiv
    1311.2901) with a window of one token. Two tokens that say the same hide each other: deleting
    only one of them changes nothing.

    Cost: T + 1 texts per completion of T tokens: the text without each token, and the whole text
    once more. ``scored.score`` may come from another reward function, and only scores of the same
    model can be compared.

    Guarantee: at γ = 1 every completion keeps its return. The attributions have no fixed sum;
    whatever is missing for the score goes to the last token. If the score is a sum over the tokens,
    the attributions are exact.

    Args:
        beta: Share of the attributions that is paid, in [0, 1].
        gamma: Discount factor of the agent, in (0, 1].
        max_rows: Largest number of texts in one forward pass.
        start: See :class:`textgym.credit.HindsightCredit`.

    Raises:
        InvalidArgumentError: If an argument is out of its range.

    Example:
        The planted reward model scores "not very bad" with 2, "very bad" with -2, "not bad" with 1
        and "not very" with 0. So the attributions are 4, 1 and 2. They sum to 7, and 2 - 7 = -5
        more goes to the last token.

        >>> from textgym.credit import OcclusionCredit
        >>> from textgym.models import Completions, load_reward_model
        >>> from textgym.planted import encode
        >>> reward_model = load_reward_model("planted")
        >>> prompt_ids = encode("the film was")
        >>> completion_ids = encode("not very bad")[1:]  # without the start token
        >>> scored = reward_model.read(Completions.from_lists([prompt_ids], [completion_ids]))
        >>> OcclusionCredit(beta=1.0)(scored)[0, 4:].round(decimals=1)
        tensor([ 4.,  1., -3.])
    """

    name = "occlusion"
    label = "occlusion"
    paper = "arXiv 1612.08220"
    signed = True
    sums_to = "no fixed sum"
    cost = "T + 1 forward passes"

    def __init__(
        self,
        beta: float = 0.8,
        gamma: float = 1.0,
        *,
        max_rows: int = 512,
        start: Start = "zero",
    ) -> None:
        super().__init__(beta, gamma, start=start)
        self.max_rows = check_whole_number("max_rows", max_rows, 1)

    def forward_passes(self, num_tokens: int) -> int:
        """The text without each token, and the whole text."""
        return num_tokens + 1

    def attributions(self, scored: ScoredCompletions) -> Tensor:
        """R(text) - R(text without the token), shape (batch, num_tokens)."""
        num_tokens = scored.input_ids.shape[1]
        others = ~torch.eye(num_tokens, dtype=torch.bool)
        everything = torch.ones(1, num_tokens, dtype=torch.bool)
        keep = torch.cat([everything, others]).expand(len(scored), -1, -1)
        scores = score_subsets(scored, keep, self.max_rows)  # (batch, 1 + num_tokens)
        # Outside the completion nothing was deleted, so the difference is exactly 0.
        return scores[:, :1] - scores[:, 1:]
