"""From examples to a folder that ``reward_model=`` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textgym.models import RewardModel
from textgym.reward_training.data import Labelled, Pair
from textgym.reward_training.evaluation import evaluate
from textgym.reward_training.training import RewardRecipe, load_base, train_reward_model

__all__ = ["fit_reward_model"]


def fit_reward_model(
    base: str | Path,
    train: Sequence[Pair] | Sequence[Labelled],
    held_out: Sequence[Pair] | Sequence[Labelled],
    output: str | Path,
    recipe: RewardRecipe,
    device: str = "cpu",
    source: str = "",
) -> dict[str, Any]:
    """Train a reward model on top of a language model, and write it to a folder.

    The folder also has the tokenizer, the mean and the standard deviation of the score on the
    held-out examples (in ``config.json``), and ``evaluation.json``.

    Args:
        base: ``"embedded"`` for the embedded language model, a folder or a hub id.
        train: Pairs, or labelled texts.
        held_out: More of them, to measure on; see :func:`split_examples`.
        output: The folder; existing files in it are replaced.
        recipe: How to train.
        device: Where to train.
        source: Where the examples come from, for ``evaluation.json``.

    Returns:
        What :func:`evaluate` returns for the held-out examples.

    Raises:
        InvalidArgumentError: If the base cannot be loaded.
        MissingDependencyError: If ``accelerate`` is not installed.
    """
    torch.manual_seed(recipe.seed)
    model, tokenizer = load_base(base, 1 if isinstance(train[0], Pair) else 2)
    train_reward_model(model, tokenizer, train, recipe, device)
    evaluation = evaluate(
        RewardModel(model, tokenizer, normalize_score=False), held_out, recipe.max_length
    )
    config: Any = model.config
    config.score_mean, config.score_std = evaluation["score_mean"], evaluation["score_std"]
    folder = Path(output)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    report = json.dumps({"data": source, "base": str(base), **evaluation}, indent=2)
    (folder / "evaluation.json").write_text(report + "\n", encoding="utf-8")
    return evaluation
