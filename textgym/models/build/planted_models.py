"""Builds the models of the planted task: ``python -m textgym.models.build.planted_models``.

Both are trained on texts that are drawn at random and scored by :mod:`textgym.planted`; there is
no data to get. The whole build takes some minutes on one core.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
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
    Trainer,
    TrainingArguments,
)

from textgym.models.build.card import planted_language_model_card, planted_reward_model_card
from textgym.models.build.optimizer import MuonWithAdamWFactory
from textgym.models.build.reference import attention_profile, sample_reference_completions
from textgym.models.build.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN
from textgym.planted import (
    EOS_ID,
    PAD_ID,
    PROMPTS,
    START_ID,
    TOKEN_IDS,
    VALUES,
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
    "draw_clauses",
    "draw_phrases",
    "draw_words",
    "evaluate_planted_reward_model",
    "make_tokenizer",
]

CONTEXT = 64
"""Longest sequence of the models, in tokens."""

_EMBEDDED = Path(__file__).parents[1] / "embedded" / "planted"
_NEUTRAL = [TOKEN_IDS[word] for word in ("the", "film", "plot", "was", "and", "it", "so")]
_MODIFIERS = [[], [TOKEN_IDS["not"]], [TOKEN_IDS["very"]], encode("not very")[1:]]


# --- Texts ----------------------------------------------------------------------------------------
# All are int64 arrays (num_texts, 1 + num_words): the start token, then the words. Since the models
# are causal and every position is trained, a text of 24 words is one of each length below, too.


def draw_words(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Words drawn one by one: uniform in half of the texts, rich in sentiment in the others.

    Args:
        rng: Source of the draws.
        num_texts: Number of texts.
        num_words: Words behind the start token; padding and start tokens may be among them, for a
            policy may choose these too.

    Returns:
        Token ids, int64 (num_texts, 1 + num_words).
    """
    uniform = np.ones(len(VOCABULARY))
    rich = np.ones(len(VOCABULARY))
    rich[[*VALUES, TOKEN_IDS["very"], TOKEN_IDS["not"], TOKEN_IDS["however"]]] = 4.0
    uniform[EOS_ID] = rich[EOS_ID] = 0.0
    half = num_texts // 2
    return _with_start(
        np.concatenate(
            [
                rng.choice(len(VOCABULARY), (rows, num_words), p=weights / weights.sum())
                for rows, weights in ((half, uniform), (num_texts - half, rich))
            ]
        )
    )


def draw_phrases(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Sentiment phrases one after the other, as a good policy would write: see :func:`draw_words`.

    Half of the texts begin with a prompt. Now and then a neutral word or a *however* stands between
    two phrases, or a phrase has a run of modifiers in any order. In a third of the texts all
    phrases are praise, as in the best ones.
    """
    prompts = [encode(prompt)[1:] for prompt in PROMPTS]
    words_of_value, modifiers = list(VALUES), encode("very not")[1:]

    def draw() -> list[int]:
        words = list(prompts[rng.integers(len(prompts))]) if rng.random() < 0.5 else []
        praise = min(1.0, 1.5 * rng.random())  # share of the phrases that are worth more than 0
        while len(words) < num_words:
            kind = rng.random()
            word = words_of_value[rng.integers(len(VALUES))]
            if kind < 0.15:
                words.append(TOKEN_IDS["however"] if kind < 0.05 else int(rng.choice(_NEUTRAL)))
            elif kind < 0.3:
                words += [*rng.choice(modifiers, rng.integers(2, 6)).tolist(), word]
            else:
                negated = (VALUES[word] < 0) == (rng.random() < praise)
                words += [*_MODIFIERS[negated + 2 * (rng.random() < 0.7)], word]
        return words[:num_words]

    return _with_start(np.array([draw() for _ in range(num_texts)]))


def draw_clauses(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """Plain clauses, such as "the film was good and the plot was very bad": see :func:`draw_words`.

    They are what the language model imitates. One word in seven is replaced by any word, so that
    the model gives some probability to all of them. End tokens follow the last clause.
    """
    subjects = [encode(text)[1:] for text in ("it was", "the film was", "the plot was")]
    links = [[TOKEN_IDS[word]] for word in ("and", "so", "however")]

    def draw() -> list[int]:
        words: list[int] = []
        for _ in range(rng.integers(2, 6)):
            modifiers = _MODIFIERS[rng.choice(4, p=(0.5, 0.2, 0.2, 0.1))]
            words += subjects[rng.integers(len(subjects))] + modifiers
            words.append(list(VALUES)[rng.integers(len(VALUES))])
            words += links[rng.choice(len(links), p=(0.6, 0.2, 0.2))]
        return words[:num_words] + [EOS_ID] * (num_words - len(words))

    words = np.array([draw() for _ in range(num_texts)])
    noise = rng.integers(EOS_ID + 1, len(VOCABULARY), words.shape)
    return _with_start(
        np.where((rng.random(words.shape) < 1 / 7) & (words != EOS_ID), noise, words)
    )


def _with_start(words: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full((len(words), 1), START_ID), words], axis=1).astype(np.int64)


def _with_ends(rng: np.random.Generator, texts: np.ndarray, share: float) -> np.ndarray:
    """Let a share of the texts end at a random word; the end token fills what is behind it."""
    end = rng.integers(1, texts.shape[1], (len(texts), 1))
    ended = rng.random((len(texts), 1)) < share
    return np.where(ended & (np.arange(texts.shape[1]) >= end), EOS_ID, texts)


def _scored_texts(rng: np.random.Generator, num_texts: int, num_words: int) -> np.ndarray:
    """What the reward model is trained on: the three kinds of texts, in random order."""
    third = num_texts // 3
    texts = np.concatenate(
        [
            draw_words(rng, num_texts - 2 * third, num_words),
            draw_phrases(rng, third, num_words),
            draw_clauses(rng, third, num_words),
        ]
    )
    return rng.permutation(_with_ends(rng, texts, share=0.1))


# --- Tokenizer ------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: one token per word, words apart by spaces, the start token in front.

    A token is decoded with the space in front of it, so that a completion can be joined to its
    prompt, and the tokens of a text can be shown one by one.
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
    """Optimizer steps; every one sees new texts."""
    batch_size: int = 128
    """Texts per step."""
    num_words: int = 24
    """Words of a text."""
    warmup_steps: int = 50
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class PlantedBuildOptions:
    """Train the models of the planted task and write them as Hugging Face folders."""

    output: Path = _EMBEDDED
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
        # "<s> it was good </s> </s>" is trained to say "it was good </s>", once.
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
    # Every block starts as the identity, which lets a short run use a high learning rate.
    blocks: Any = model.base_model.layers
    for block in blocks:
        nn.init.zeros_(block.self_attn.o_proj.weight)
        nn.init.zeros_(block.mlp.down_proj.weight)
    texts = draw(
        np.random.default_rng(recipe.seed), recipe.steps * recipe.batch_size, recipe.num_words
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup_steps,
            max_grad_norm=1.0,
            use_cpu=True,
            logging_steps=200,
            save_strategy="no",
            seed=recipe.seed,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=objective(model),
            args=arguments,
            train_dataset=_Texts(texts),
            optimizer_cls_and_kwargs=(
                MuonWithAdamWFactory,  # type: ignore[arg-type]
                {
                    "muon_lr": recipe.muon_lr,
                    "muon_weight_decay": 0.0,
                    "adamw_lr": recipe.adamw_lr,
                },
            ),
        )
        trainer.train()


# --- Evaluation -----------------------------------------------------------------------------------


def evaluate_planted_reward_model(
    model: PreTrainedModel, num_texts: int = 2000, num_words: int = 24, seed: int = 1
) -> dict[str, dict[str, float]]:
    """Errors of the predicted score on texts of another seed than the training's.

    Args:
        model: A decoder with one label.
        num_texts: Texts of each kind.
        num_words: Words of a text; all its prefixes are judged.
        seed: Seed of the draws.

    Returns:
        For each kind of text (``"words"``, ``"phrases"``, ``"clauses"``, and ``"optimal"``: the
        prompts with optimal completions of 1 to 12 tokens): ``mean_absolute_error`` over all
        prefixes, ``at_the_end`` (the same at the last word alone) and ``largest_error``.
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
    """Train both models, and write them with tokenizer and model card; some minutes on one core."""
    recipe = options.language_model
    torch.manual_seed(recipe.seed)
    language_model: PreTrainedModel = Qwen3ForCausalLM(_config(recipe))
    _train(language_model, _Imitation, recipe, draw_clauses)
    folder = options.output / "language_model"
    language_model = _ship(language_model, folder, AutoModelForCausalLM)
    reference = sample_reference_completions(
        language_model, [encode(prompt) for prompt in PROMPTS], 2000, _generator(), 8, 8
    )
    card = planted_language_model_card(_circumstances(language_model, recipe), *_samples(reference))
    (folder / "README.md").write_text(card, encoding="utf-8")

    recipe = options.reward_model
    torch.manual_seed(recipe.seed)
    reward_model: PreTrainedModel = Qwen3ForSequenceClassification(_config(recipe, num_labels=1))
    _train(reward_model, _PrefixRegression, recipe, _scored_texts)
    folder = options.output / "reward_model"
    reward_model = _ship(reward_model, folder, AutoModelForSequenceClassification)
    config = AutoConfig.from_pretrained(folder)
    config.attention_profile = attention_profile(reward_model, make_tokenizer(), reference)
    config.save_pretrained(folder)
    card = planted_reward_model_card(
        _circumstances(reward_model, recipe), evaluate_planted_reward_model(reward_model)
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(card)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _ship(model: PreTrainedModel, folder: Path, auto_class: Any) -> PreTrainedModel:
    """Save a model in float16 with its tokenizer, and load what was saved, in float32."""
    model.half().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return auto_class.from_pretrained(folder, dtype=torch.float32).eval()


def _samples(reference: Sequence[tuple[list[int], list[int]]]) -> tuple[list[str], float]:
    """Some of the reference texts, and the mean score of all of them."""
    texts = [[*prompt, *completion] for prompt, completion in reference]
    shown = [" ".join(VOCABULARY[token] for token in text[1:]) for text in texts[:10]]
    return shown, float(np.mean([score(text) for text in texts]))


def _circumstances(model: PreTrainedModel, recipe: PlantedRecipe) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers")
    return {
        "parameters": model.num_parameters(),
        "recipe": asdict(recipe),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def main() -> None:
    """Read the options from the command line, and build."""
    torch.set_num_threads(1)
    build_planted(
        tyro.cli(PlantedBuildOptions, prog="python -m textgym.models.build.planted_models")
    )


if __name__ == "__main__":
    main()
