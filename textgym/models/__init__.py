"""Language models, reward models and what is read out of them."""

from textgym.models.completions import Completions, ScoredCompletions
from textgym.models.loading import load_language_model, load_reward_model, load_tokenizer
from textgym.models.reward_model import READOUTS, RewardModel

__all__ = [
    "READOUTS",
    "Completions",
    "RewardModel",
    "ScoredCompletions",
    "load_language_model",
    "load_reward_model",
    "load_tokenizer",
]
