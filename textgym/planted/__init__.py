"""A task with a known answer: 17 tokens, a program that scores texts, and the best texts."""

from textgym.planted.optimum import optimal_completion, optimal_score, prefix_scores
from textgym.planted.program import (
    EOS_ID,
    PAD_ID,
    PROMPTS,
    START_ID,
    TOKEN_IDS,
    VALUES,
    VOCABULARY,
    State,
    contributions,
    encode,
    score,
    step,
)

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "PROMPTS",
    "START_ID",
    "TOKEN_IDS",
    "VALUES",
    "VOCABULARY",
    "State",
    "contributions",
    "encode",
    "optimal_completion",
    "optimal_score",
    "prefix_scores",
    "score",
    "step",
]
