"""Tiny random models of any architecture that transformers has."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from textgym.checks import first_line

__all__ = ["CLASSES", "VOCAB", "NotBuiltError", "make_tiny"]

VOCAB = 60
CLASSES = {
    "language model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}
"""By kind, the names of the classes by the type of their configuration."""

_MOST_PARAMETERS = 20_000_000
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    "word_embed_proj_dim": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    # Windows that are shorter than the texts.
    **{"sliding_window": 5, "window_size": 5, "attention_chunk_size": 6},
    **{"num_key_value_heads": 2, "num_experts_per_tok": 2, "rotary_dim": 4},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "max_window_layers": 2},
    **{"use_sliding_window": True, "num_labels": 1},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
_HEADS = ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank")
_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": None},
    {"rotary_dim": None},
    dict.fromkeys(("head_dim", *_HEADS)),
)
"""Other sizes, one attempt after the other; None: that of the architecture."""


class NotBuiltError(Exception):
    """No tiny model could be made of the architecture."""


def make_tiny(kind: str, architecture: str, **settings: Any) -> Any:
    """Make a tiny model with random weights, always the same.

    Args:
        kind: One of :data:`CLASSES`.
        architecture: The type of its configuration, such as "llama".
        **settings: Of the configuration, besides the sizes.

    Raises:
        NotBuiltError: If sizes for any architecture do not fit this one.
    """
    own = {"is_decoder": kind == "language model", **settings}
    reason = ""
    for attempt in _ATTEMPTS:
        sizes = {name: size for name, size in {**_SIZES, **attempt}.items() if size is not None}
        try:
            model = _make(kind, architecture, {**sizes, **own})
            with torch.no_grad():
                model(input_ids=torch.tensor([[5, 6, 7]]))
        except NotBuiltError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
        else:
            return model
    raise NotBuiltError(reason)


def _make(kind: str, architecture: str, wanted: dict[str, Any]) -> Any:
    config = _config(architecture, wanted)
    class_ = getattr(transformers, CLASSES[kind][architecture])
    with torch.device("meta"):
        number = sum(p.numel() for p in class_(config).parameters())
    if number > _MOST_PARAMETERS:
        raise NotBuiltError(f"it has {number / 1e6:.0f} M parameters with these sizes")
    torch.manual_seed(0)
    return class_(config).eval()


def _config(architecture: str, wanted: dict[str, Any]) -> Any:
    """A configuration with those of the wanted sizes that it has."""
    class_ = CONFIG_MAPPING[architecture]
    base = class_()
    sizes = {name: size for name, size in wanted.items() if hasattr(base, name)}
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(base, name, None):  # Each kind of layer, in turns.
            kinds = list(dict.fromkeys(getattr(base, name)))
            sizes[name] = [kinds[i % len(kinds)] for i in range(4)]
    while True:
        try:
            return class_(**sizes)
        except (AttributeError, TypeError) as error:  # Some attributes follow from others.
            name = re.search(r"'(\w+)'", str(error))
            if name is None or sizes.pop(name[1], None) is None:
                raise
