"""Wrappers for single environments; :mod:`textgym.wrappers.vector` has the batched forms."""

from textgym.wrappers.action_mask import ActionMask
from textgym.wrappers.attention_shaping import AttentionShaping
from textgym.wrappers.credit_assignment import CreditAssignment
from textgym.wrappers.illegal_token import IllegalToken
from textgym.wrappers.language_model_features import LanguageModelFeatures
from textgym.wrappers.potential_shaping import PotentialShaping
from textgym.wrappers.reference_logprob import ReferenceLogProb
from textgym.wrappers.top_k_actions import TopKActions

__all__ = [
    "ActionMask",
    "AttentionShaping",
    "CreditAssignment",
    "IllegalToken",
    "LanguageModelFeatures",
    "PotentialShaping",
    "ReferenceLogProb",
    "TopKActions",
]
