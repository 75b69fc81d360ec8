"""Reward functions that read text: classifiers with a tokenizer of their own, and functions.

The environment deals in the policy's tokens. Everything here turns them into text, has the text
scored, and brings what was read out back to the policy's tokens.
"""

from textgym.models.bridge.adapt import reading_tokens_of
from textgym.models.bridge.incremental import IncrementalTextReader
from textgym.models.bridge.reward_function import RewardFunction
from textgym.models.bridge.spans import TokenText, texts_of_tokens
from textgym.models.bridge.template import TextTemplate
from textgym.models.bridge.text_reward_model import TextCompletions, TextRewardModel

__all__ = [
    "IncrementalTextReader",
    "RewardFunction",
    "TextCompletions",
    "TextRewardModel",
    "TextTemplate",
    "TokenText",
    "reading_tokens_of",
    "texts_of_tokens",
]
