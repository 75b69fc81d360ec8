"""Builds the gold reward model: ``python -m textgym.models.build.gold_reward_model --help``.

Benchmarks judge policies by it, and no policy is trained on it, so a policy that exploits the
embedded reward model shows (Gao et al., 2023, "Scaling Laws for Reward Model Overoptimization",
arXiv 2210.10760, call the two proxy and gold). It has another architecture (ModernBERT, an
encoder), another tokenizer (WordPiece), another size and another seed, and it is trained on the
reviews of the *test* half of the Large Movie Review Dataset, which the embedded models never saw.
First it learns to fill in masked tokens, then to classify pieces of reviews.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from textgym.models.build.card import build_versions, gold_reward_model_card
from textgym.models.build.language_model import pack
from textgym.models.build.reward_model import BANDS, score_sequences
from textgym.models.build.training import train
from textgym.models.build.windows import (
    PadRight,
    Window,
    WindowDataset,
    batch_by_length,
    draw_windows,
)
from textgym.models.loading import EMBEDDED_FOLDER
from textgym.reviews import Review, is_held_out, load_reviews, read_review_folder

__all__ = ["GoldBuildOptions", "GoldRecipe", "build_gold", "train_gold_reward_model"]

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


@dataclass(frozen=True)
class GoldRecipe:
    """Size and training of the gold reward model."""

    vocab_size: int = 8000
    hidden_size: int = 192
    intermediate_size: int = 288
    num_layers: int = 6
    num_heads: int = 3
    context: int = 256
    """Longest text, in tokens."""
    dropout: float = 0.1
    mask_share: float = 0.3
    """Share of the tokens that are masked in the first stage."""
    row_length: int = 128
    """Tokens of a row in the first stage."""
    masked_passes: float = 0.5
    """Passes over the reviews in the first stage."""
    masked_muon_lr: float = 0.02
    masked_adamw_lr: float = 3e-3
    min_tokens: int = 6
    """Shortest piece of a review in the second stage."""
    max_tokens: int = 128
    passes: int = 4
    """Passes over the reviews in the second stage; each draws a new piece of every review."""
    batch_size: int = 64
    pad_multiple: int = 16
    warmup_steps: int = 50
    muon_lr: float = 3e-3
    adamw_lr: float = 5e-4
    muon_weight_decay: float = 0.1
    seed: int = 1000


@dataclass(frozen=True)
class GoldBuildOptions:
    """Train the gold reward model and write it as a Hugging Face folder.

    If the build was interrupted, run the same command again: it continues from its last checkpoint.
    """

    reviews: Path
    """The folder aclImdb of the Large Movie Review Dataset, ai.stanford.edu/~amaas/data/sentiment.
    Only its test half is read."""
    output: Path = EMBEDDED_FOLDER / "gold_reward_model"
    work: Path = Path("runs/build-gold")
    """Folder for the checkpoints."""
    recipe: GoldRecipe = field(default_factory=GoldRecipe)


def build_gold(options: GoldBuildOptions) -> None:
    """Train, evaluate and write the model with its tokenizer and card."""
    train, held_out = unseen_reviews(options.reviews)
    model, tokenizer = train_gold_reward_model(train, options.recipe, options.work)
    # Rounded as they are stored, so that the accuracy is that of the stored weights.
    model = model.half().float().eval()
    evaluation = {
        "parameters": model.num_parameters(),
        "texts": {"train": len(train), "held_out": len(held_out)},
        "recipe": asdict(options.recipe),
        "held_out": evaluate(model, tokenizer, held_out),
        "versions": build_versions(),
    }
    model.half().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    text = json.dumps(evaluation, indent=2) + "\n"
    (options.output / "evaluation.json").write_text(text, encoding="utf-8")
    card = gold_reward_model_card(evaluation)
    (options.output / "README.md").write_text(card, encoding="utf-8")
    print(card)


def unseen_reviews(folder: Path) -> tuple[list[Review], list[Review]]:
    """The test half without texts that the package's reviews have too, split in two.

    Args:
        folder: aclImdb.

    Returns:
        Reviews for training and one in twenty for evaluation; see
        :func:`textgym.reviews.is_held_out`.
    """
    seen = {review.text for split in ("train", "held_out") for review in load_reviews(split)}
    reviews = [r for r in read_review_folder(folder / "test") if r.text not in seen]
    train = [review for review in reviews if not is_held_out(review.text)]
    return train, [review for review in reviews if is_held_out(review.text)]


def train_gold_reward_model(
    reviews: Sequence[Review], recipe: GoldRecipe, work_folder: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train the tokenizer, then the model in two stages.

    Args:
        reviews: Labelled texts.
        recipe: How to train.
        work_folder: For checkpoints; training continues from the last one.

    Returns:
        The model, float32, and its tokenizer.
    """
    tokenizer = train_wordpiece([r.text for r in reviews], recipe.vocab_size, recipe.context)
    torch.manual_seed(recipe.seed)
    config = _config(recipe, tokenizer)
    masked = ModernBertForMaskedLM(config)
    documents = [
        np.array([*ids, tokenizer.sep_token_id], dtype=np.int32)
        for ids in tokenizer([r.text for r in reviews], truncation=False, verbose=False)[
            "input_ids"
        ]
    ]
    rows = pack(documents, recipe.row_length, recipe.masked_passes, recipe.seed)
    _train(
        masked,
        _Rows(rows),
        DataCollatorForLanguageModeling(tokenizer, mlm_probability=recipe.mask_share),
        recipe,
        work_folder / "masked",
        {"muon_lr": recipe.masked_muon_lr, "adamw_lr": recipe.masked_adamw_lr},
    )
    model = ModernBertForSequenceClassification(config)
    model.model.load_state_dict(masked.model.state_dict())
    rng = np.random.default_rng(recipe.seed)
    windows: list[Window] = []
    for _ in range(recipe.passes):
        drawn = draw_windows(
            reviews, tokenizer, recipe.min_tokens, recipe.max_tokens, rng, end_share=1.0
        )
        windows += batch_by_length(drawn, recipe.batch_size, rng)
    pad = PadRight(tokenizer.pad_token_id, recipe.pad_multiple)
    _train(
        model,
        WindowDataset(windows),
        lambda batch: _with_mask(pad(batch)),
        recipe,
        work_folder / "classified",
        {"muon_lr": recipe.muon_lr, "adamw_lr": recipe.adamw_lr},
    )
    _set_template(tokenizer, "[CLS] $A [SEP]")
    return model, tokenizer


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reviews: Sequence[Review],
    bands: Sequence[tuple[int, int]] = BANDS,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Accuracy on pieces of held-out reviews, by their length in tokens.

    Returns:
        By band, such as ``"8-24"``: ``accuracy`` and ``windows``, their number.
    """
    _set_template(tokenizer, "[CLS] $A")
    found = {}
    for shortest, longest in bands:
        rng = np.random.default_rng(seed)
        windows = [
            window
            for _ in range(2)
            for window in draw_windows(reviews, tokenizer, shortest, longest, rng, end_share=1.0)
        ]
        scores = score_sequences(model, [window.input_ids for window in windows])
        labels = torch.tensor([window.label for window in windows])
        accuracy = ((scores > 0) == (labels == 1)).float().mean().item()
        found[f"{shortest}-{longest}"] = {"accuracy": accuracy, "windows": len(windows)}
    _set_template(tokenizer, "[CLS] $A [SEP]")
    return found


def train_wordpiece(
    texts: Sequence[str], vocab_size: int, max_length: int
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer. It adds [CLS]; [SEP] comes after training."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(_SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        eos_token=_SPECIAL["sep"],
        bos_token=_SPECIAL["cls"],
        **{f"{name}_token": token for name, token in _SPECIAL.items()},
    )
    _set_template(fast, "[CLS] $A")
    return fast


def _set_template(tokenizer: Any, template: str) -> None:
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in _SPECIAL.values()]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )


def _config(recipe: GoldRecipe, tokenizer: PreTrainedTokenizerBase) -> ModernBertConfig:
    settings: dict[str, Any] = dict(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        layer_types=["full_attention"] * recipe.num_layers,
        max_position_embeddings=recipe.context,
        embedding_dropout=recipe.dropout,
        mlp_dropout=recipe.dropout,
        classifier_dropout=recipe.dropout,
        classifier_pooling="mean",
        sparse_prediction=True,
        num_labels=2,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        label2id={"NEGATIVE": 0, "POSITIVE": 1},
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return ModernBertConfig(**settings)


class _Rows(Dataset):
    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows[index].tolist()}


def _with_mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A padded batch with the mask that an encoder needs, instead of the lengths."""
    lengths = batch.pop("lengths")
    width = batch["input_ids"].shape[1]
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    return batch


def _train(
    model: PreTrainedModel,
    dataset: Any,
    collate: Callable[..., Any],
    recipe: GoldRecipe,
    work_folder: Path,
    learning_rates: dict[str, float],
) -> None:
    train(
        model,
        dataset,
        work_folder,
        {"muon_weight_decay": recipe.muon_weight_decay, **learning_rates},
        collate=collate,
        max_steps=len(dataset) // recipe.batch_size,
        per_device_train_batch_size=recipe.batch_size,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup_steps,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        seed=recipe.seed,
    )


def main() -> None:
    """Build with options from the command line."""
    build_gold(tyro.cli(GoldBuildOptions, prog="python -m textgym.models.build.gold_reward_model"))


if __name__ == "__main__":
    main()
