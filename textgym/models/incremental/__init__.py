"""Reading texts that grow: one token of a text costs one token of the model."""

from textgym.models.incremental.decoder import IncrementalDecoder
from textgym.models.incremental.readers import (
    IncrementalLanguageModel,
    IncrementalRewardModel,
    NextToken,
)

__all__ = [
    "IncrementalDecoder",
    "IncrementalLanguageModel",
    "IncrementalRewardModel",
    "NextToken",
]
