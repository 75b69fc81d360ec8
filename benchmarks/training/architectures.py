"""What textgym reads of a model, beside what the model itself says of each text alone.

The model itself: its own forward pass over one text without padding, without a cache, with nothing
but the token ids.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
import transformers
from torch import Tensor

from textgym.agents import LanguageModelPolicy
from textgym.errors import InvalidArgumentError
from textgym.models import (
    AttentionRow,
    Completions,
    GradientTimesInput,
    PrefixScores,
    RewardModel,
)

from .tiny_models import VOCAB, NotBuiltError, make_tiny

__all__ = ["read_architecture"]

_LENGTHS = (22, 13, 17)


def read_architecture(kind: str, architecture: str) -> pd.DataFrame:
    """Read texts with a tiny model of an architecture, in the ways that textgym has.

    Args:
        kind: "language model" or "classifier".
        architecture: The type of its configuration.

    Returns:
        A row per way: ``way``, ``outcome`` ("right", "wrong", "refused", "failed", "not compared"
        where the model itself does not tell, or "not built"), ``difference`` (the largest, by the
        largest value) and ``reason``.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    ways = _policy_ways if kind == "language model" else _classifier_ways
    try:
        model = make_tiny(kind, architecture)
    except NotBuiltError as error:
        rows = [_row("model", "not built", reason=str(error))]
    else:
        rows = [_outcome(name, compare) for name, compare in ways(model).items()]
    return pd.DataFrame(rows)


class _NoComparisonError(Exception):
    """The model itself does not tell."""


def _row(way: str, outcome: str, difference: float | None = None, reason: str = "") -> dict:
    row = {"way": way, "outcome": outcome, "difference": difference}
    return {**row, "reason": " ".join(reason.split())[:240]}


def _outcome(way: str, compare: Callable[[], tuple[str, float]]) -> dict[str, Any]:
    """Compare, and say how it went."""
    try:
        note, difference = compare()
    except InvalidArgumentError as error:
        return _row(way, "refused", reason=error.remedy)
    except _NoComparisonError as error:
        return _row(way, "not compared", reason=str(error))
    except Exception as error:
        return _row(way, "failed", reason=f"{type(error).__name__}: {error}")
    # NaN is wrong, too. HRM, which runs its layers again and again, turns rounding into 2e-3.
    return _row(way, "right" if difference <= 1e-2 else "wrong", difference, note)


def _texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in _LENGTHS]


def _off(read: Tensor, expected: Tensor) -> float:
    return float((read - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def _alone(model: Any, text: Sequence[int], **arguments: Any) -> Any:
    return model(input_ids=torch.tensor([list(text)]), **arguments)


# --- Language models


def _policy_ways(model: Any) -> dict[str, Callable[[], tuple[str, float]]]:
    policy = LanguageModelPolicy(model)

    def in_rollouts() -> tuple[str, float]:
        """Texts grow, rows wait, and rows start anew."""
        worst, texts = 0.0, _texts()
        now = [text[:n] for text, n in zip(texts, (2, 5, 1), strict=True)]
        with policy.reading() as reader:
            for step in range(24):
                waits = step % 4 == 3
                asked = [None if waits and row == 1 else text for row, text in enumerate(now)]
                said = reader.read(asked)
                for row, text in enumerate(asked):
                    if text is None:
                        continue
                    worst = max(worst, _off(said.logits[row], _alone(model, text).logits[0, -1]))
                    whole = texts[row]
                    is_over = len(text) == len(whole)
                    now[row] = whole[::-1][:3] if is_over else whole[: len(text) + 1]
                    texts[row] = whole[::-1] if is_over else whole
            return ("token by token" if reader.is_incremental else "whole texts anew"), worst

    def in_updates() -> tuple[str, float]:
        """Whole texts of several lengths, with padding at the left."""
        with policy.reading():  # Refuses what an update would see otherwise.
            pass
        texts, width = _texts(), max(_LENGTHS)
        ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
        mask = torch.arange(width, 0, -1) <= torch.tensor(_LENGTHS)[:, None]
        with torch.no_grad():
            logits, _ = policy(ids, mask, 5)
        alone = [_alone(model, text).logits[0, -5:] for text in texts]
        return "", max(_off(read, expected) for read, expected in zip(logits, alone, strict=True))

    return {"rollouts": in_rollouts, "updates": in_updates}


# --- Classifiers


def _classifier_ways(model: Any) -> dict[str, Callable[[], tuple[str, float]]]:
    texts = _texts()
    batch = Completions.from_lists(
        [text[:3] for text in texts], [text[3:] for text in texts], pad_token_id=7
    )
    alone = torch.stack([_alone(model, text).logits[0, 0] for text in texts])

    def kind_of(reward_model: RewardModel) -> str:
        return "decoder" if reward_model.is_causal else "encoder"

    def scores() -> tuple[str, float]:
        reward_model = RewardModel(model, None)
        return kind_of(reward_model), _off(reward_model.read(batch).score, alone)

    def prefix_scores() -> tuple[str, float]:
        reward_model = RewardModel(model, None)
        read = reward_model.read(batch, [PrefixScores()])[PrefixScores()]
        ends = range(1, _LENGTHS[0] + 1)
        expected = torch.stack([_alone(model, texts[0][:end]).logits[0, 0] for end in ends])
        return kind_of(reward_model), _off(read[0, : _LENGTHS[0]], expected)

    def attention() -> tuple[str, float]:
        """Of the last layer, at the position that the score is read from, mean over heads."""
        reward_model = RewardModel(model, None)
        read = reward_model.read(batch, [AttentionRow()])[AttentionRow()]
        position = -1 if reward_model.is_causal else 0
        eager = type(model)._from_config(model.config, attn_implementation="eager").eval()
        eager.load_state_dict(model.state_dict())
        worst = 0.0
        for row, text in enumerate(texts):
            maps = _alone(eager, text, output_attentions=True).attentions
            if not maps or maps[-1].shape[-2:] != (len(text), len(text)):
                raise _NoComparisonError("it returns no attention map of its last layer")
            expected = maps[-1][0].mean(0)[position]
            worst = max(worst, float((read[row, : len(text)] - expected).abs().max()))
        return kind_of(reward_model), worst

    def gradient() -> tuple[str, float]:
        """Of the score, at what the table of embeddings says to the model itself."""
        reward_model = RewardModel(model, None)
        read = reward_model.read(batch, [GradientTimesInput()])[GradientTimesInput()]
        worst = 0.0
        for row, text in enumerate(texts):
            embedded: list[Tensor] = []

            def from_here(*call: Any, seen: list[Tensor] = embedded) -> Tensor:
                seen.append(call[-1].detach().requires_grad_())
                return seen[-1]

            hook = model.get_input_embeddings().register_forward_hook(from_here)
            try:
                score = model(input_ids=torch.tensor([text])).logits[0, 0]
            finally:
                hook.remove()
            (slope,) = torch.autograd.grad(score, embedded)
            expected = (slope * embedded[0]).sum(-1)[0].detach()
            worst = max(worst, _off(read[row, : len(text)], expected))
        return kind_of(reward_model), worst

    return {
        "scores": scores,
        "prefix scores": prefix_scores,
        "attention": attention,
        "gradient": gradient,
    }
