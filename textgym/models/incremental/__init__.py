"""Readers of growing texts: extending a text by one token costs one token of the model."""

from textgym.models.incremental.decoder import (
    IncrementalDecoder,
    example_texts,
    largest_rounding,
)
from textgym.models.incremental.lean import weights_version
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
    "example_texts",
    "largest_rounding",
    "weights_version",
]
