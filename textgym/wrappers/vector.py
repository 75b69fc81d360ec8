"""The wrappers for batched environments (``gym.make_vec``), named like the single ones."""

from textgym.wrappers.action_mask import VectorActionMask as ActionMask
from textgym.wrappers.attention_shaping import VectorAttentionShaping as AttentionShaping
from textgym.wrappers.credit_assignment import VectorCreditAssignment as CreditAssignment
from textgym.wrappers.illegal_token import VectorIllegalToken as IllegalToken
from textgym.wrappers.language_model_features import (
    VectorLanguageModelFeatures as LanguageModelFeatures,
)
from textgym.wrappers.potential_shaping import VectorPotentialShaping as PotentialShaping
from textgym.wrappers.reference_logprob import VectorReferenceLogProb as ReferenceLogProb
from textgym.wrappers.top_k_actions import VectorTopKActions as TopKActions

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
