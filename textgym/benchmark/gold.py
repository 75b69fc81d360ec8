"""The gold reward model: judges what policies wrote, and trains none of them.

It is an encoder of its own size and tokenizer, trained on reviews that the embedded reward model
never saw; see its card, textgym/models/embedded/gold_reward_model/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import textgym.models.embedded

__all__ = ["gold_scores"]

_FOLDER = Path(textgym.models.embedded.__file__).parent / "gold_reward_model"
_BATCH = 64


@torch.no_grad()
def gold_scores(texts: Sequence[str]) -> NDArray[np.float32]:
    """Log-odds for "positive", float32 (num_texts,).

    Args:
        texts: Prompts with their completions.
    """
    tokenizer, model = _load()
    scores = np.empty(len(texts), dtype=np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")  # Less padding.
    for rows in np.split(order, range(_BATCH, len(order), _BATCH)):
        batch = tokenizer(
            [texts[row] for row in rows], return_tensors="pt", padding=True, truncation=True
        )
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits.float()
        scores[rows] = (logits[:, 1] - logits[:, 0]).numpy()
    return scores


@cache
def _load() -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(_FOLDER, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(_FOLDER), model.eval()
