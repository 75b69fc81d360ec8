"""Builds the models of the planted task: ``python -m textgym.models.build.planted_models``.

Both models are trained on random texts that :mod:`textgym.planted` scores, so no data is needed.
The whole build takes a few minutes on one core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from textgym.models.build.card import (
    build_versions,
    planted_language_model_card,
    planted_reward_model_card,
)
from textgym.models.build.planted_texts import (
    draw_clauses,
    draw_phrases,
    draw_scored_texts,
    draw_words,
)
from textgym.models.build.reference import attention_profile, sample_reference_completions
from textgym.models.build.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN
from textgym.models.build.training import train
from textgym.models.loading import EMBEDDED_FOLDER
from textgym.planted import (
    EOS_ID,
    PAD_ID,
    PROMPTS,
    START_ID,
    TOKEN_IDS,
    VOCABULARY,
    encode,
    optimal_completion,
    prefix_scores,
    score,
)

__all__ = [
    "PlantedBuildOptions",
    "PlantedRecipe",
    "build_planted",
    "evaluate_planted_reward_model",
    "make_tokenizer",
]

CONTEXT = 64
"""Longest sequence of the models, in tokens."""

# --- Tokenizer ------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: one token per word, words separated by spaces, the start token in front.

    A token is decoded with a leading space, so that a completion can be joined to its prompt and
    tokens can be shown one by one.
    """
    tokenizer = Tokenizer(models.WordLevel(TOKEN_IDS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("^"), " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A $B",
        special_tokens=[(BOS_TOKEN, START_ID)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


# --- Training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedRecipe:
    """Size and training of one of the two models."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    steps: int
    """Optimizer steps, each on new texts."""
    batch_size: int = 128
    """Texts per step."""
    num_words: int = 24
    """Words per text."""
    warmup_steps: int = 50
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class PlantedBuildOptions:
    """Train the models of the planted task and write them as Hugging Face folders."""

    output: Path = EMBEDDED_FOLDER / "planted"
    """Folder of the results: language_model and reward_model."""
    language_model: PlantedRecipe = field(
        default_factory=lambda: PlantedRecipe(64, 192, 2, 4, steps=400)
    )
    reward_model: PlantedRecipe = field(
        default_factory=lambda: PlantedRecipe(96, 256, 3, 4, steps=2500)
    )


class _Texts(Dataset):
    def __init__(self, texts: np.ndarray) -> None:
        self.texts = texts
        self.scores = prefix_scores(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.texts[index], "labels": self.scores[index]}


class _PrefixRegression(nn.Module):
    """The reward model's training loss: the squared error of the score at every position."""

    def __init__(self, reward_model: Qwen3ForSequenceClassification) -> None:
        super().__init__()
        self.reward_model = reward_model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.reward_model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        predicted = self.reward_model.score(hidden)[..., 0]  # (batch, num_tokens)
        return {"loss": (predicted - labels).square().mean()}


class _Imitation(nn.Module):
    """The language model's training loss: the next token, up to the first end token."""

    def __init__(self, language_model: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # "<s> it was good </s> </s>" trains the model to say "it was good </s>", with one </s>.
        targets = input_ids.masked_fill(input_ids.roll(1, dims=1) == EOS_ID, -100)
        return {"loss": self.language_model(input_ids=input_ids, labels=targets).loss}


def _config(recipe: PlantedRecipe, **changes: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=START_ID,
        eos_token_id=EOS_ID,
        **changes,
    )


def _train(
    model: PreTrainedModel,
    objective: Callable[[Any], nn.Module],
    recipe: PlantedRecipe,
    draw: Callable[[np.random.Generator, int, int], np.ndarray],
) -> None:
    # Every block starts as the identity, so a short run can use a high learning rate.
    blocks: Any = model.base_model.layers
    for block in blocks:
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)
    texts = draw(
        np.random.default_rng(recipe.seed), recipe.steps * recipe.batch_size, recipe.num_words
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            objective(model),
            _Texts(texts),
            Path(folder),
            {"muon_lr": recipe.muon_lr, "muon_weight_decay": 0.0, "adamw_lr": recipe.adamw_lr},
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup_steps,
            use_cpu=True,
            logging_steps=200,
            save_strategy="no",
            seed=recipe.seed,
        )


# --- Evaluation -----------------------------------------------------------------------------------


def evaluate_planted_reward_model(
    model: PreTrainedModel, num_texts: int = 2000, num_words: int = 24, seed: int = 1
) -> dict[str, dict[str, float]]:
    """Errors of the predicted score on texts that were not trained on.

    Args:
        model: A decoder with one label.
        num_texts: Number of texts of each kind.
        num_words: Words per text; all prefixes are evaluated.
        seed: Seed of the draws; it differs from the training's.

    Returns:
        For each kind of text (``"words"``, ``"phrases"``, ``"clauses"``, and ``"optimal"``: the
        prompts with optimal completions of 1 to 12 tokens): ``mean_absolute_error`` over all
        prefixes, ``at_the_end`` (mean absolute error at the last word) and ``largest_error``.
    """
    rng = np.random.default_rng(seed)
    errors = {
        name: _absolute_errors(model, draw(rng, num_texts, num_words))
        for name, draw in (
            ("words", draw_words),
            ("phrases", draw_phrases),
            ("clauses", draw_clauses),
        )
    }
    optimal = [
        _absolute_errors(model, np.array([[*prompt, *optimal_completion(prompt, budget)]]))
        for prompt in map(encode, PROMPTS)
        for budget in range(1, 13)
    ]
    result = {name: _summary(error, error[:, -1]) for name, error in errors.items()}
    result["optimal"] = _summary(
        np.concatenate([error.ravel() for error in optimal]),
        np.array([error[0, -1] for error in optimal]),
    )
    return result


@torch.no_grad()
def _absolute_errors(model: PreTrainedModel, texts: np.ndarray) -> np.ndarray:
    hidden = model.base_model(input_ids=torch.from_numpy(texts)).last_hidden_state
    head: nn.Linear = model.score  # type: ignore[assignment]
    return np.abs(head(hidden)[..., 0].numpy() - prefix_scores(texts))  # (num_texts, num_tokens)


def _summary(errors: np.ndarray, at_the_end: np.ndarray) -> dict[str, float]:
    return {
        "mean_absolute_error": float(errors.mean()),
        "at_the_end": float(at_the_end.mean()),
        "largest_error": float(errors.max()),
    }


# --- The build ------------------------------------------------------------------------------------


def build_planted(options: PlantedBuildOptions) -> None:
    """Train both models, and write them with tokenizers and model cards. Takes a few minutes."""
    recipe = options.language_model
    torch.manual_seed(recipe.seed)
    language_model: PreTrainedModel = Qwen3ForCausalLM(_config(recipe))
    _train(language_model, _Imitation, recipe, draw_clauses)
    folder = options.output / "language_model"
    language_model = _ship(language_model, folder, AutoModelForCausalLM)
    reference = sample_reference_completions(
        language_model, [encode(prompt) for prompt in PROMPTS], 2000, _generator(), 8, 8
    )
    card = planted_language_model_card(_build_facts(language_model, recipe), *_samples(reference))
    (folder / "README.md").write_text(card, encoding="utf-8")

    recipe = options.reward_model
    torch.manual_seed(recipe.seed)
    reward_model: PreTrainedModel = Qwen3ForSequenceClassification(_config(recipe, num_labels=1))
    _train(reward_model, _PrefixRegression, recipe, draw_scored_texts)
    folder = options.output / "reward_model"
    reward_model = _ship(reward_model, folder, AutoModelForSequenceClassification)
    config = AutoConfig.from_pretrained(folder)
    config.attention_profile = attention_profile(reward_model, make_tokenizer(), reference)
    config.save_pretrained(folder)
    card = planted_reward_model_card(
        _build_facts(reward_model, recipe), evaluate_planted_reward_model(reward_model)
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ship(model: PreTrainedModel, folder: Path, auto_class: Any) -> PreTrainedModel:
    """Save a model in float16 with its tokenizer, and load it again in float32."""
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return auto_class.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def _samples(reference: Sequence[tuple[list[int], list[int]]]) -> tuple[list[str], float]:
    """Ten of the reference texts, and the mean score of all of them."""
    texts = [[*prompt, *completion] for prompt, completion in reference]
    shown = [" ".join(VOCABULARY[token] for token in text[1:]) for text in texts[:10]]
    return shown, float(np.mean([score(text) for text in texts]))


def _build_facts(model: PreTrainedModel, recipe: PlantedRecipe) -> dict[str, Any]:
    return {
        "parameters": model.num_parameters(),
        "recipe": asdict(recipe),
        "versions": build_versions(),
    }


def main() -> None:
    """Build with options from the command line."""
    torch.set_num_threads(1)
    build_planted(
        tyro.cli(PlantedBuildOptions, prog="python -m textgym.models.build.planted_models")
    )


if __name__ == "__main__":
    main()
