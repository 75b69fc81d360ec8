"""Training and evaluation of the embedded language model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from textgym.models.build.training import train

__all__ = ["LanguageModelRecipe", "evaluate_language_model", "pack", "train_language_model"]


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Size and training of the embedded language model."""

    vocab_size: int = 4096
    """Number of tokens, including special ones."""
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    head_dim: int = 64
    context: int = 256
    """Longest sequence and length of a training row, in tokens."""
    batch_size: int = 32
    """Rows per optimizer step."""
    passes: float = 2.0
    """Passes over the training reviews, each with a new shuffle and so with other rows."""
    warmup_steps: int = 60
    decay_fraction: float = 0.4
    """Share of training at its end over which both learning rates fall linearly to zero."""
    muon_lr: float = 0.02
    muon_weight_decay: float = 0.1
    adamw_lr: float = 3e-3
    seed: int = 0


class _Rows(Dataset):
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.rows[index].astype(np.int64))
        return {"input_ids": row, "labels": row}


def pack(documents: list[np.ndarray], length: int, passes: float, seed: int) -> np.ndarray:
    """Concatenate shuffled documents and cut the stream into rows of equal length.

    Args:
        documents: Token ids of each document, including start and end tokens.
        length: Tokens per row.
        passes: How often each document is used, on average. Every pass has its own shuffle.
        seed: Seed of the shuffles.

    Returns:
        int32 array of shape (num_rows, length). Leftover tokens that fill no row are dropped.
    """
    rng = np.random.default_rng(seed)
    total = int(passes * sum(len(document) for document in documents))
    stream: list[np.ndarray] = []
    for _ in range(int(np.ceil(passes))):
        stream.extend(documents[i] for i in rng.permutation(len(documents)))
    tokens = np.concatenate(stream)[:total].astype(np.int32)
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def train_language_model(
    documents: list[np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    recipe: LanguageModelRecipe,
    work_folder: Path,
    device: str = "cpu",
    compile_model: bool = True,
) -> PreTrainedModel:
    """Train the language model. Continues from the last checkpoint if there is one.

    Args:
        documents: Token ids of the training reviews.
        tokenizer: The embedded tokenizer.
        recipe: Size and training.
        work_folder: Holds the checkpoints and the log while training runs.
        device: ``"cpu"`` or ``"cuda"``.
        compile_model: Whether to train through ``torch.compile``.

    Returns:
        The trained model, float32.
    """
    torch.manual_seed(recipe.seed)
    heads = recipe.hidden_size // recipe.head_dim
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Every block starts as the identity, so a short run can use a high learning rate.
    for block in model.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    rows = pack(documents, recipe.context, recipe.passes, recipe.seed)
    steps = len(rows) // recipe.batch_size
    train(
        model,
        _Rows(rows),
        work_folder,
        {
            "muon_lr": recipe.muon_lr,
            "muon_weight_decay": recipe.muon_weight_decay,
            "adamw_lr": recipe.adamw_lr,
        },
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": int(recipe.decay_fraction * steps),
            "decay_type": "linear",
        },
        warmup_steps=recipe.warmup_steps,
        bf16=True,
        use_cpu=device == "cpu",
        torch_compile=compile_model,
        logging_steps=20,
        seed=recipe.seed,
    )
    return model


@torch.no_grad()
def evaluate_language_model(
    model: PreTrainedModel, documents: list[np.ndarray], length: int, batch_size: int = 32
) -> float:
    """Mean negative log-likelihood on held-out documents.

    Args:
        model: A causal language model.
        documents: Token ids of the held-out reviews.
        length: Tokens per row. The first token of a row is context only.
        batch_size: Rows per forward pass.

    Returns:
        Nats per token.
    """
    model.eval()
    rows = torch.from_numpy(pack(documents, length, 1, 0).astype(np.int64))
    total, count = 0.0, 0
    for batch in rows.split(batch_size):
        batch = batch.to(model.device)
        logits = model(input_ids=batch).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total += loss.item()
        count += batch[:, 1:].numel()
    return total / count
