"""Language models, reward models, and what can be read out of them."""

from textgym.models.bridge import RewardFunction, TextRewardModel
from textgym.models.completions import (
    Completions,
    GradientScorer,
    LeftAligned,
    ScoredCompletions,
    Scorer,
)
from textgym.models.incremental import (
    IncrementalLanguageModel,
    IncrementalRewardModel,
    NextToken,
)
from textgym.models.loading import load_language_model, load_reward_model, load_tokenizer
from textgym.models.readouts import (
    AttentionMap,
    AttentionRow,
    GradientTimesInput,
    LayerAttentionMaps,
    Pooling,
    PrefixScores,
    Readout,
)
from textgym.models.recorder import AttentionRecorder
from textgym.models.reward_model import RewardModel

__all__ = [
    "AttentionMap",
    "AttentionRecorder",
    "AttentionRow",
    "Completions",
    "GradientScorer",
    "GradientTimesInput",
    "IncrementalLanguageModel",
    "IncrementalRewardModel",
    "LayerAttentionMaps",
    "LeftAligned",
    "NextToken",
    "Pooling",
    "PrefixScores",
    "Readout",
    "RewardFunction",
    "RewardModel",
    "ScoredCompletions",
    "Scorer",
    "TextRewardModel",
    "load_language_model",
    "load_reward_model",
    "load_tokenizer",
]
