"""Is what a classifier says right? A new reward model reads two short texts in several ways.

A score must not depend on the padding beside a text, nor on what else is asked for, and a decoder's
score of a prefix must not depend on what follows. An attention row must be a distribution over the
text, of the position that the score is read from. Not all architectures keep to that: some look at
padding, some look ahead, some compute other attention when it is asked for, and some pool elsewhere
than it seems. Scores that depend on padding or on what follows are refused when the reward model is
made; attention and gradients that cannot be trusted are refused when they are asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor

from textgym.checks import first_line
from textgym.errors import InvalidArgumentError
from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.readouts import AttentionRow, GradientTimesInput, Pooling, PrefixScores, Readout

__all__ = ["fault_of_attention", "fault_of_gradient", "fault_of_scores"]

_LENGTHS = (6, 3)
"""Tokens of the two texts; the second one is padded when both are read together."""


class Reader(Protocol):
    """What is needed of a :class:`textgym.models.RewardModel`, which needs this module."""

    model: Any
    is_causal: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def num_embeddings(self) -> int: ...

    def read_unverified(
        self, completions: Completions, readouts: Collection[Readout] = ()
    ) -> ScoredCompletions: ...

    def embed(self, input_ids: Tensor) -> Tensor: ...

    def score_embeddings(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor: ...


def fault_of_scores(reward_model: Reader) -> str | None:
    """What is wrong with the scores; None if nothing is."""
    try:
        texts = _texts(reward_model)
        together = reward_model.read_unverified(_batch(texts, reward_model)).score
        alone = torch.cat(
            [reward_model.read_unverified(_batch([one], reward_model)).score for one in texts]
        )
        ahead = reward_model.is_causal and _looks_ahead(reward_model, texts[0])
    except (InvalidArgumentError, Warning):  # warnings that are to be errors
        raise
    except Exception as error:  # architectures fail in all kinds of ways
        return f"it cannot score a text ({type(error).__name__}: {first_line(error)})"
    if not together.isfinite().all():
        return f"its scores are {together.tolist()}"
    if not _are_close(together, alone, reward_model):
        return (
            f"its score of a text depends on the padding beside it ({alone[1]:.4f} alone, "
            f"{together[1]:.4f} in a batch)"
        )
    if ahead:
        return (
            "its head reads the last token, as a decoder's does, but its score of a prefix depends "
            "on the tokens that follow"
        )
    return None


def _looks_ahead(reward_model: Reader, text: list[int]) -> bool:
    """Whether the scores of prefixes are others when the text goes on."""
    whole = reward_model.read_unverified(_batch([text], reward_model), [PrefixScores()])
    prefix = reward_model.read_unverified(_batch([text[:3]], reward_model)).score
    return not _are_close(whole[PrefixScores()][0, 2:3], prefix, reward_model)


def fault_of_gradient(reward_model: Reader) -> str | None:
    """What is wrong with the gradient with respect to the embeddings; None if nothing is."""
    batch = _batch(_texts(reward_model), reward_model)
    try:
        plain = reward_model.read_unverified(batch).score
        read = reward_model.read_unverified(batch, [GradientTimesInput()]).score
    except Warning:  # warnings that are to be errors
        raise
    except Exception as error:  # architectures fail in all kinds of ways
        return f"it has no gradient ({type(error).__name__}: {first_line(error)})"
    if not _are_close(plain, read, reward_model):
        return "its score of embeddings is not that of their tokens"
    return None


def fault_of_attention(reward_model: Reader) -> str | None:
    """What is wrong with the attention; None if nothing is."""
    texts = _texts(reward_model)
    batch = _batch(texts, reward_model)
    try:
        plain = reward_model.read_unverified(batch).score
        read = reward_model.read_unverified(batch, [AttentionRow(), Pooling()])
        pooled = _gradient_by_position(reward_model, texts[0])
    except InvalidArgumentError as error:
        return error.remedy
    except Warning:  # warnings that are to be errors
        raise
    except Exception as error:  # architectures fail in all kinds of ways
        return f"its attention cannot be read ({type(error).__name__}: {first_line(error)})"
    if not _are_close(plain, read.score, reward_model):
        return "asking for its attention changes its score"
    row = read[AttentionRow()].float()
    tolerance = 1e-4 if reward_model.dtype == torch.float32 else 0.05
    outside = row.masked_fill(batch.attention_mask.to(row.device), 0.0)
    sums = row.sum(1)
    if row.min() < 0 or outside.abs().max() > 0 or (sums - 1).abs().max() > tolerance:
        return f"its attention is no distribution over the text (rows sum to {sums.tolist()})"
    expected = read[Pooling()][0] > 0
    if pooled is not None and not torch.equal(pooled, expected.cpu()):
        return "the score is read from another position than the attention"
    return None


def _texts(reward_model: Reader) -> list[list[int]]:
    """Ordinary token ids, far from the special ones at the beginning of most vocabularies."""
    start, step = reward_model.num_embeddings // 2, max(1, reward_model.num_embeddings // 20)
    ids = [(start + step * i) % reward_model.num_embeddings for i in range(max(_LENGTHS))]
    return [ids[:length] for length in _LENGTHS]


def _batch(texts: list[list[int]], reward_model: Reader) -> Completions:
    return Completions.from_lists([t[:1] for t in texts], [t[1:] for t in texts]).to(
        reward_model.device
    )


def _gradient_by_position(reward_model: Reader, ids: list[int]) -> Tensor | None:
    """Which of the last hidden states the score depends on, bool (num_tokens,); None if unknown."""
    if reward_model.is_causal:
        return None  # The head is applied to a chosen state.
    states: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        states.append(output[0])

    model = reward_model.model
    hook = model.base_model.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            embeddings = reward_model.embed(torch.tensor([ids], device=reward_model.device))
            embeddings = embeddings.detach().requires_grad_()
            mask = torch.ones(1, len(ids), dtype=torch.bool, device=reward_model.device)
            score = reward_model.score_embeddings(embeddings, mask)
            (gradient,) = torch.autograd.grad(score.sum(), states[-1], allow_unused=True)
    finally:
        hook.remove()
    if gradient is None or gradient.shape[:2] != (1, len(ids)):
        return None
    size = gradient[0].float().norm(dim=1).cpu()
    return size > 1e-6 * size.max()


def _are_close(first: Tensor, second: Tensor, reward_model: Reader) -> bool:
    largest = float(torch.cat([first, second]).abs().max())
    limit = 1e-6 + 1e-4 * largest if reward_model.dtype == torch.float32 else 0.05 * (1 + largest)
    return float((first - second).abs().max()) <= limit
