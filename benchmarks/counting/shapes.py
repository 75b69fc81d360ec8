"""Shapes of decoders, and how many parameters they have.

The numbers are those of the models' public ``config.json``. The papers list most of them too:

- GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2;
- SmolLM2: Ben Allal et al. 2025, arXiv 2502.02737;
- Qwen2.5: Qwen Team 2024, arXiv 2412.15115, table 1;
- Llama 3: Grattafiori et al. 2024, arXiv 2407.21783, table 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EMBEDDED", "SHAPES", "Shape"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
        name: How it is known.
        kind: "gpt2", "llama", "qwen2" or "qwen3", which decides on norms, biases and the MLP.
        layers: L.
        width: d, of the hidden states.
        heads: H, of queries.
        key_heads: K, of keys and values.
        head_size: h.
        mlp: m, width of the feed-forward layer.
        vocabulary: V.
        positions: Learned positions; 0 for rotary ones.
        is_tied: Whether the head is the embedding matrix.
    """

    name: str
    kind: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    positions: int = 0
    is_tied: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads of queries together, H·h."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all heads of keys together, K·h; the same for values."""
        return self.key_heads * self.head_size

    @property
    def matrices(self) -> int:
        """Weights of the matrices of all layers, without embeddings and head."""
        d, num_mlp = self.width, 2 if self.kind == "gpt2" else 3
        attention = 2 * d * self.queries + 2 * d * self.keys
        return self.layers * (attention + num_mlp * d * self.mlp)

    @property
    def head(self) -> int:
        """Weights of the language model's head, V·d, tied or not."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All parameters of the language model; a tied head counts once."""
        d = self.width
        embeddings = self.head * (1 if self.is_tied else 2) + self.positions * d
        biases = {
            "gpt2": self.queries + 2 * self.keys + d + self.mlp + d,
            "llama": 0,
            "qwen2": self.queries + 2 * self.keys,
            "qwen3": 2 * self.head_size,  # not biases, but norms of queries and of keys
        }[self.kind]
        norm = 2 * d if self.kind == "gpt2" else d  # GPT-2's norms have a bias
        return embeddings + self.matrices + self.layers * (biases + 2 * norm) + norm

    @property
    def scorer(self) -> int:
        """Parameters of a reward model of this shape: one output instead of a vocabulary."""
        untied_head = 0 if self.is_tied else self.head
        return self.parameters - untied_head + self.width

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA where ``peft`` puts it by default: on queries and values.

        GPT-2 has queries, keys and values in one matrix, which gets one adapter.

        Args:
            rank: r of the adapters; 0 for none.
        """
        d = self.width
        if self.kind == "gpt2":
            per_layer = d + self.queries + 2 * self.keys
        else:
            per_layer = 2 * d + self.queries + self.keys
        return self.layers * rank * per_layer

    def config(self) -> dict[str, Any]:
        """Keyword arguments of ``AutoConfig.for_model``."""
        if self.kind == "gpt2":
            return {
                "model_type": "gpt2",
                "n_layer": self.layers,
                "n_embd": self.width,
                "n_head": self.heads,
                "n_inner": self.mlp,
                "vocab_size": self.vocabulary,
                "n_positions": self.positions,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            }
        return {
            "model_type": self.kind,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.is_tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


EMBEDDED = Shape(
    name="embedded", kind="qwen3", layers=4, width=256, heads=4, key_heads=4, head_size=64, mlp=768,
    vocabulary=4096,
)  # fmt: skip
"""The language model that ships with textgym; its reward model has the same layers."""

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in [
        EMBEDDED,
        Shape(
            name="GPT-2", kind="gpt2", layers=12, width=768, heads=12, key_heads=12, head_size=64,
            mlp=3072, vocabulary=50257, positions=1024, is_tied=True,
        ),
        Shape(
            name="SmolLM2-135M", kind="llama", layers=30, width=576, heads=9, key_heads=3,
            head_size=64, mlp=1536, vocabulary=49152, is_tied=True,
        ),
        Shape(
            name="Qwen2.5-0.5B", kind="qwen2", layers=24, width=896, heads=14, key_heads=2,
            head_size=64, mlp=4864, vocabulary=151936, is_tied=True,
        ),
        Shape(
            name="Qwen2.5-1.5B", kind="qwen2", layers=28, width=1536, heads=12, key_heads=2,
            head_size=128, mlp=8960, vocabulary=151936, is_tied=True,
        ),
        Shape(
            name="Qwen2.5-7B", kind="qwen2", layers=28, width=3584, heads=28, key_heads=4,
            head_size=128, mlp=18944, vocabulary=152064,
        ),
        Shape(
            name="Llama-3-8B", kind="llama", layers=32, width=4096, heads=32, key_heads=8,
            head_size=128, mlp=14336, vocabulary=128256,
        ),
        Shape(
            name="Qwen2.5-14B", kind="qwen2", layers=48, width=5120, heads=40, key_heads=8,
            head_size=128, mlp=13824, vocabulary=152064,
        ),
        Shape(
            name="Qwen2.5-32B", kind="qwen2", layers=64, width=5120, heads=40, key_heads=8,
            head_size=128, mlp=27648, vocabulary=152064,
        ),
        Shape(
            name="Llama-3-70B", kind="llama", layers=80, width=8192, heads=64, key_heads=8,
            head_size=128, mlp=28672, vocabulary=128256,
        ),
    ]
}  # fmt: skip
"""By name, from 5.5 million to 70 billion parameters."""
