"""Training of a reward model, by the Trainer of transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from textgym.checks import check_number, check_whole_number, first_line
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.models import load_tokenizer
from textgym.models.loading import place_of_model
from textgym.reward_training.data import Labelled, Pair

__all__ = ["RewardRecipe", "load_base", "pair_loss", "train_reward_model"]


@dataclass(frozen=True, kw_only=True)
class RewardRecipe:
    """How a reward model is trained."""

    epochs: float = 1.0
    """Passes over the examples."""
    learning_rate: float = 1e-4
    """Highest learning rate of AdamW; it rises over a twentieth of the steps and falls to zero."""
    batch_size: int = 32
    """Examples per step."""
    max_length: int = 256
    """Longest text in tokens; longer ones are cut at the end."""
    prefix_share: float = 0.5
    """Share of the examples that are cut at a random token. A reward model that has seen beginnings
    scores beginnings well, which causal shaping needs. A pair is cut at the same share of both
    texts."""
    center_coef: float = 0.01
    """Weight of the square of the two scores' sum, which keeps pairs' scores around zero."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidArgumentError: If one is out of range.
        """
        for name in ("epochs", "learning_rate"):
            remedy = "must be a finite number above 0"
            check_number(name, getattr(self, name), above=0, remedy=remedy)
        for name in ("batch_size", "max_length"):
            check_whole_number(name, getattr(self, name), 1)
        remedy = "must be a number from 0 to 1"
        check_number("prefix_share", self.prefix_share, least=0, most=1, remedy=remedy)
        remedy = "must be a finite number of at least 0"
        check_number("center_coef", self.center_coef, least=0, remedy=remedy)
        check_whole_number("seed", self.seed, 0, 2**32 - 1)


def load_base(base: str | Path, num_labels: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier with the weights of a model and a new head, and the model's tokenizer.

    Args:
        base: ``"embedded"`` for the embedded language model, a folder or a hub id.
        num_labels: 1 for a score, 2 for negative and positive.

    Raises:
        InvalidArgumentError: If it cannot be loaded.
    """
    place = place_of_model("base", base)
    tokenizer = load_tokenizer(base)
    names = {0: "NEGATIVE", 1: "POSITIVE"} if num_labels == 2 else {0: "SCORE"}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            place,
            num_labels=num_labels,
            id2label=names,
            label2id={name: number for number, name in names.items()},
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except Exception as error:  # Broken files fail in all kinds of ways.
        remedy = f"cannot be loaded ({first_line(error)})"
        raise InvalidArgumentError("base", str(base), remedy) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def pair_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, center_coef: float) -> Tensor:
    """The negative log-likelihood of the preferences under Bradley and Terry's model, mean.

    -log σ(s_chosen - s_rejected - margin), plus ``center_coef`` times the squared sum of both
    scores (Eisenstein et al., 2023, arXiv 2312.09244).

    Args:
        chosen: Scores, shape (batch,).
        rejected: Scores, shape (batch,).
        margin: Shape (batch,).
        center_coef: See above.

    >>> zero = torch.zeros(1)
    >>> pair_loss(torch.tensor([2.0]), zero, zero, 0.0)
    tensor(0.1269)
    """
    losses = -logsigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected) ** 2
    return losses.mean()


def train_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Pair] | Sequence[Labelled],
    recipe: RewardRecipe,
    device: str = "cpu",
) -> PreTrainedModel:
    """Train a classifier, in place.

    Args:
        model: One label for pairs, two for labelled texts.
        tokenizer: Its tokenizer, with a padding token.
        examples: What to learn from.
        recipe: How.
        device: "cpu", or any other name for whatever the Trainer finds.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingDependencyError: If ``accelerate``, which the Trainer needs, is not installed.
    """
    if find_spec("accelerate") is None:
        raise MissingDependencyError("accelerate", "build", "Training a reward model")
    torch.manual_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.learning_rate,
            warmup_steps=max(1, int(0.05 * recipe.epochs * len(examples) / recipe.batch_size)),
            max_grad_norm=1.0,
            remove_unused_columns=False,
            use_cpu=device == "cpu",
            logging_steps=20,
            save_strategy="no",
            seed=recipe.seed,
            report_to="none",
        )
        trainer = _RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=list(examples),  # type: ignore[arg-type]
            data_collator=_Collate(tokenizer, recipe),
        )
        trainer.center_coef = recipe.center_coef
        trainer.train()
    model.cpu()  # type: ignore[call-arg]
    return model.eval()


class _Collate:
    """Encodes examples, cuts some of them, and pads them on the right.

    Of pairs, the chosen texts come first, then the rejected ones in the same order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: RewardRecipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.rng = np.random.default_rng(recipe.seed)

    def __call__(self, examples: Sequence[Pair | Labelled]) -> dict[str, Tensor]:
        cuts = self.rng.uniform(size=len(examples))
        cuts[self.rng.uniform(size=len(examples)) >= self.recipe.prefix_share] = 1.0
        texts, labels, margins = [], [], []
        for one in examples:
            if isinstance(one, Labelled):
                texts.append(one.text)
                labels.append(one.label)
            else:
                texts.append(one.chosen)
                margins.append(one.margin)
        texts += [one.rejected for one in examples if isinstance(one, Pair)]
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.recipe.max_length, verbose=False
        )["input_ids"]
        cut = [
            ids[: max(1, round(share * len(ids)))]
            for ids, share in zip(encoded, np.resize(cuts, len(encoded)), strict=True)
        ]
        batch = dict(
            self.tokenizer.pad({"input_ids": cut}, return_tensors="pt", padding_side="right")
        )
        if labels:
            return {**batch, "labels": torch.tensor(labels)}
        return {**batch, "margin": torch.tensor(margins)}


class _RewardTrainer(Trainer):
    center_coef: float = 0.0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch from :class:`_Collate`."""
        margin, labels = inputs.get("margin"), inputs.get("labels")
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = output.logits.float()
        if margin is not None:
            chosen, rejected = logits[:, 0].chunk(2)
            loss = pair_loss(chosen, rejected, margin, self.center_coef)
        else:
            assert labels is not None
            loss = cross_entropy(logits, labels)
        return (loss, output) if return_outputs else loss
