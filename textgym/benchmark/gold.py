"""The gold reward model: judges what policies wrote, and trains none of them.

It is an encoder of its own size and tokenizer, trained on reviews that the embedded reward model
never saw; see its card, textgym/models/embedded/gold_reward_model/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["gold_scores", "judge", "left_to_judge"]


def gold_scores(texts: Sequence[str]) -> NDArray[np.float32]:
    """Log-odds for "positive", float32 (num_texts,).

    Args:
        texts: Prompts with their completions.
    """
    from textgym.models import load_reward_model  # Imported here: slow; tables do not need it.

    gold = load_reward_model("gold")
    encoded = gold.tokenizer(list(texts), truncation=True)["input_ids"]
    return gold.score_ids(encoded, max_rows=64).numpy()


def left_to_judge(runs: pd.DataFrame) -> pd.Index:
    """The rows that have fresh completions and no gold score."""
    if "fresh_texts" not in runs:
        return runs.index[:0]
    return runs.index[runs["fresh_texts"].notna() & _gold_of(runs).isna()]


def judge(runs: pd.DataFrame) -> pd.DataFrame:
    """Fill the column ``fresh_gold``: the mean gold score of a row's fresh completions.

    Args:
        runs: Rows of runs; ``fresh_texts`` has pairs of prompt and completion as JSON, or None.

    Returns:
        The same frame if no texts are left to judge.
    """
    rows = left_to_judge(runs)
    if rows.empty:
        return runs
    gold = _gold_of(runs)
    for row in rows:
        pairs = json.loads(runs.loc[row, "fresh_texts"])
        scores = gold_scores([prompt + completion for prompt, completion in pairs])
        gold[row] = round(float(scores.mean()), 4)
    return runs.assign(fresh_gold=gold)


def _gold_of(runs: pd.DataFrame) -> pd.Series:
    return runs["fresh_gold"].copy() if "fresh_gold" in runs else pd.Series(np.nan, runs.index)
