"""Training and evaluation of the embedded reward model, a sentiment classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForSequenceClassification

from textgym.models.build.training import train
from textgym.models.build.windows import (
    PadRight,
    Window,
    WindowDataset,
    batch_by_length,
    draw_windows,
    encode,
)
from textgym.reviews import Review

__all__ = [
    "PrefixSupervision",
    "RewardModelRecipe",
    "evaluate_reward_model",
    "score_sequences",
    "train_reward_model",
]

BANDS = ((8, 24), (24, 64), (120, 128))
"""Ranges of lengths in tokens, both ends included, to report the accuracy for."""


@dataclass(frozen=True)
class RewardModelRecipe:
    """Training of the embedded reward model, which has the size of the language model."""

    min_tokens: int = 8
    """Shortest window, in tokens of text; also the shortest prefix with a loss of its own."""
    max_tokens: int = 128
    """Longest window, in tokens of text."""
    start_share: float = 0.5
    """Share of the windows that begin at the start of the review; others begin at a sentence."""
    end_share: float = 1 / 3
    """Share of the windows with an end token, so that the score does not depend on its presence."""
    prefix_weight: float = 1.0
    """Weight of the mean loss over all prefixes; the loss at the last token has weight 1."""
    passes: int = 4
    """Passes over the training texts; each draws a new window from every text."""
    batch_size: int = 64
    """Windows per optimizer step."""
    pad_multiple: int = 16
    """Batches are padded to a multiple of this, so that few distinct shapes occur."""
    warmup_steps: int = 50
    muon_lr: float = 3e-3
    muon_weight_decay: float = 0.1
    adamw_lr: float = 5e-4
    seed: int = 0


class PrefixSupervision(nn.Module):
    """The training loss: cross-entropy at the last token, and at every long enough prefix.

    In a causal model the logits at a position depend only on the text up to there, so one forward
    pass classifies all prefixes. This multiplies the training signal. It also makes the scores of
    prefixes, which causal shaping uses, meaningful in themselves.

    Args:
        reward_model: The model to train.
        min_tokens: Shortest prefix with a loss, the start token not counted.
        prefix_weight: Weight of the mean loss over all prefixes.
    """

    def __init__(
        self, reward_model: Qwen3ForSequenceClassification, min_tokens: int, prefix_weight: float
    ) -> None:
        super().__init__()
        self.reward_model = reward_model
        self.min_tokens = min_tokens
        self.prefix_weight = prefix_weight

    def forward(self, input_ids: Tensor, lengths: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch that :class:`PadRight` collated."""
        hidden = self.reward_model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.reward_model.score(hidden).float()  # (batch, width, 2)
        losses = F.cross_entropy(
            logits.transpose(1, 2), labels[:, None].expand_as(input_ids), reduction="none"
        )  # (batch, width)
        # With min_tokens = 2, "<s> a b c </s> <pad>" has losses at b, c and </s>.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        supervised = (positions >= self.min_tokens) & (positions < lengths[:, None])
        prefixes = (losses * supervised).sum(1) / supervised.sum(1)
        last = losses.gather(1, lengths[:, None] - 1).squeeze(1)
        return {"loss": (last + self.prefix_weight * prefixes).mean() / (1 + self.prefix_weight)}


def train_reward_model(
    language_model: PreTrainedModel,
    reviews: Sequence[Review],
    tokenizer: PreTrainedTokenizerBase,
    recipe: RewardModelRecipe,
    work_folder: Path,
    device: str = "cpu",
    compile_model: bool = False,
) -> PreTrainedModel:
    """Train the reward model. Continues from the last checkpoint if there is one.

    Args:
        language_model: The trained language model; the reward model starts from its blocks.
        reviews: The labelled training texts.
        tokenizer: The embedded tokenizer.
        recipe: How to train.
        work_folder: Holds the checkpoints and the log while training runs.
        device: ``"cpu"`` or ``"cuda"``.
        compile_model: Whether to train through ``torch.compile``.

    Returns:
        The trained model, float32.
    """
    torch.manual_seed(recipe.seed)
    config = copy.deepcopy(language_model.config)
    config.num_labels = 2
    config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    config.label2id = {"NEGATIVE": 0, "POSITIVE": 1}
    config.use_cache = False
    model = Qwen3ForSequenceClassification(config)
    model.model.load_state_dict(language_model.base_model.state_dict())

    rng = np.random.default_rng(recipe.seed)
    windows: list[Window] = []
    for _ in range(recipe.passes):
        drawn = draw_windows(
            reviews,
            tokenizer,
            recipe.min_tokens,
            recipe.max_tokens,
            rng,
            recipe.start_share,
            recipe.end_share,
        )
        windows += batch_by_length(drawn, recipe.batch_size, rng)
    train(
        PrefixSupervision(model, recipe.min_tokens, recipe.prefix_weight),
        WindowDataset(windows),
        work_folder,
        {
            "muon_lr": recipe.muon_lr,
            "muon_weight_decay": recipe.muon_weight_decay,
            "adamw_lr": recipe.adamw_lr,
        },
        collate=PadRight(tokenizer.pad_token_id, recipe.pad_multiple),
        max_steps=len(windows) // recipe.batch_size,
        per_device_train_batch_size=recipe.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup_steps,
        bf16=True,
        use_cpu=device == "cpu",
        torch_compile=compile_model,
        logging_steps=50,
        seed=recipe.seed,
    )
    return model


@torch.no_grad()
def score_sequences(
    model: PreTrainedModel, sequences: Sequence[list[int]], batch_size: int = 128
) -> Tensor:
    """Score token sequences with the model's own forward pass and pooling.

    Args:
        model: A sequence classifier with the labels negative and positive.
        sequences: Token ids of each text, start token included.
        batch_size: Texts per forward pass.

    Returns:
        float32 tensor (num_sequences,): logit(positive) − logit(negative).
    """
    model.eval()
    pad = PadRight(model.config.pad_token_id, multiple=1)
    scores = [torch.empty(0)]
    for first in range(0, len(sequences), batch_size):
        batch = pad([Window(ids, 0) for ids in sequences[first : first + batch_size]])
        mask = torch.arange(batch["input_ids"].shape[1]) < batch["lengths"][:, None]
        logits = model(
            input_ids=batch["input_ids"].to(model.device), attention_mask=mask.to(model.device)
        ).logits.float()  # (batch, 2)
        scores.append((logits[:, 1] - logits[:, 0]).cpu())
    return torch.cat(scores)


def evaluate_reward_model(
    model: PreTrainedModel,
    reviews: Sequence[Review],
    tokenizer: PreTrainedTokenizerBase,
    bands: Iterable[tuple[int, int]] = BANDS,
    draws: int = 2,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Accuracy on held-out texts.

    Args:
        model: A sequence classifier with the labels negative and positive.
        reviews: The held-out texts: windows are drawn from the IMDb reviews, half of them from
            the start and half from a random sentence. Rotten Tomatoes sentences are taken whole.
        tokenizer: The embedded tokenizer.
        bands: Shortest and longest window in tokens, for each row of the result.
        draws: Windows per review and band.
        seed: Seed of the draws.

    Returns:
        For each set of texts (``"imdb 8-24"``, ..., ``"rotten_tomatoes"``): ``accuracy``,
        ``accuracy_with_end`` (with an end token after the text), ``margin`` (mean score towards the
        right label) and ``windows`` (their number). Sets without windows are left out.
    """
    sets: dict[str, list[Window]] = {}
    imdb = [review for review in reviews if review.source == "imdb"]
    for shortest, longest in bands:
        rng = np.random.default_rng(seed)
        sets[f"imdb {shortest}-{longest}"] = [
            window
            for _ in range(draws)
            for window in draw_windows(imdb, tokenizer, shortest, longest, rng)
        ]
    sentences = [review for review in reviews if review.source == "rotten_tomatoes"]
    encoded = encode(tokenizer, [sentence.text for sentence in sentences], 128)
    sets["rotten_tomatoes"] = [
        Window(ids, sentence.label) for ids, sentence in zip(encoded, sentences, strict=True)
    ]
    return {
        name: _accuracy(model, windows, tokenizer.eos_token_id)
        for name, windows in sets.items()
        if windows
    }


def _accuracy(
    model: PreTrainedModel, windows: Sequence[Window], eos_token_id: int
) -> dict[str, Any]:
    sign = torch.tensor([2 * window.label - 1 for window in windows])
    margin = sign * score_sequences(model, [window.input_ids for window in windows])
    ended = sign * score_sequences(model, [[*w.input_ids, eos_token_id] for w in windows])
    return {
        "accuracy": (margin > 0).float().mean().item(),
        "accuracy_with_end": (ended > 0).float().mean().item(),
        "margin": margin.mean().item(),
        "windows": len(windows),
    }
