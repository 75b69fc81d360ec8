"""What a model's forward pass takes, and what lies below its head."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

__all__ = [
    "body_of",
    "first_position",
    "forward_parameters",
    "longest_text",
    "padding_of",
    "unwrapped",
]


def forward_parameters(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's ``forward``.

    A wrapper such as ``peft.PeftModel`` hides them behind ``**kwargs`` and passes all of them on,
    so they are those of the model inside.

    Args:
        model: A module.
    """
    return frozenset(inspect.signature(unwrapped(model).forward).parameters)


def body_of(model: Any) -> Any:
    """The part of a model that is below its head, and gives hidden states; None if it has none.

    Args:
        model: A Hugging Face model, or a wrapper of one such as ``peft.PeftModel``.
    """
    inside = unwrapped(model)
    # OPT's head calls the decoder in its base model, and not the base model itself.
    decoder = inside.get_decoder() if hasattr(inside, "get_decoder") else None
    if isinstance(decoder, nn.Linear):  # ModernBERT's decoder calls its head so.
        decoder = None
    body = getattr(inside, "base_model", inside) if decoder is None else decoder
    return None if body is inside else body


def first_position(model: Any) -> int:
    """The position of a text's first token.

    It is 0 but for RoBERTa and its kin, whose table of positions begins with that of padding.

    Args:
        model: A Hugging Face model, or a wrapper of one such as ``peft.PeftModel``.
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            return 0 if part.padding_idx is None else part.padding_idx + 1
    return 0


def longest_text(model: Any) -> int | None:
    """How many tokens a text may have; None if the model's config sets no limit.

    RoBERTa's table of positions begins with those up to that of padding. LongRoPE turns all
    positions by other angles once a text is longer than those of the first training: also those of
    shorter texts in the batch, and of tokens in a cache. Such texts are beyond the limit.

    Args:
        model: A Hugging Face model, or a wrapper of one such as ``peft.PeftModel``.
    """
    config = unwrapped(model).config.get_text_config()
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limit = rope["original_max_position_embeddings"]
    return None if limit is None else limit - first_position(model)


def padding_of(config: Any, num_embeddings: int) -> int:
    """The token of a model's own padding; 0 if it names none that it can embed.

    Padding is masked, but some models look at the token: to find the end of a text, or because
    each token is embedded with its neighbours.

    Args:
        config: The model's.
        num_embeddings: Number of tokens that the model can embed.
    """
    token_id = getattr(config, "pad_token_id", None)
    return token_id if token_id is not None and 0 <= token_id < num_embeddings else 0


def unwrapped(model: Any) -> Any:
    """The Hugging Face model in a wrapper such as ``peft.PeftModel``."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
