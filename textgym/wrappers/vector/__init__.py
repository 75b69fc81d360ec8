"""Wrappers for the batched environment that ``gym.make_vec`` returns."""

from textgym.wrappers.vector.action_mask import ActionMask
from textgym.wrappers.vector.attention_shaping import AttentionShaping
from textgym.wrappers.vector.credit_assignment import CreditAssignment
from textgym.wrappers.vector.language_model_features import LanguageModelFeatures
from textgym.wrappers.vector.reference_logprob import ReferenceLogProb
from textgym.wrappers.vector.top_k_actions import TopKActions

__all__ = [
    "ActionMask",
    "AttentionShaping",
    "CreditAssignment",
    "LanguageModelFeatures",
    "ReferenceLogProb",
    "TopKActions",
]
