"""Wrappers for single environments; :mod:`textgym.wrappers.vector` has the batched forms."""

from textgym.wrappers.attention_shaping import AttentionShaping
from textgym.wrappers.credit_assignment import CreditAssignment

__all__ = ["AttentionShaping", "CreditAssignment"]
