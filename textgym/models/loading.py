"""Loading of tokenizers and models: embedded ones, local folders, hub ids or loaded objects.

What is loaded by name is kept for the life of the process, so that all environments share it.
Weights come from safetensors alone, and no code that ships with a model is run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from textgym.errors import InvalidArgumentError
from textgym.models.reward_model import RewardModel

__all__ = [
    "EMBEDDED_FOLDER",
    "load_language_model",
    "load_reward_model",
    "load_tokenizer",
    "parse_device",
    "parse_dtype",
]

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
"""Where the models that ship with textgym are."""


def parse_device(device: str | torch.device) -> torch.device:
    """Check a device name.

    Raises:
        InvalidArgumentError: If the device is unknown or not available on this machine.
    """
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(
            "device", str(device), f'not usable here ({reason}); pass "cpu" or another device'
        ) from None
    return parsed


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Turn a dtype or its name into a dtype; None means float32.

    Raises:
        InvalidArgumentError: If it is not a floating-point dtype.
    """
    parsed: Any = torch.float32 if dtype is None else dtype
    if isinstance(parsed, str):
        parsed = getattr(torch, parsed.removeprefix("torch."), None)
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise InvalidArgumentError(
            "dtype", dtype, 'pass a floating-point dtype such as "float32" or "bfloat16"'
        )
    return parsed


def load_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        tokenizer: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded tokenizer.

    Raises:
        InvalidArgumentError: If it cannot be loaded or has no end token.
    """
    if isinstance(tokenizer, (str, Path)):
        loaded = _load_tokenizer(_resolve("tokenizer", tokenizer, "language_model"))
    else:
        loaded = tokenizer
    if not callable(loaded) or getattr(loaded, "eos_token_id", None) is None:
        raise InvalidArgumentError(
            "tokenizer", tokenizer, "must be a Hugging Face tokenizer with an end token (eos_token)"
        )
    return loaded


def load_language_model(
    model: str | Path | PreTrainedModel,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        model: ``"embedded"``, ``"planted"``, a local folder, a hub id, or a loaded model, which is
            returned as it is. A model that was loaded by name is shared: copy it before training.
        device: Where to put a model that is loaded by name.
        dtype: Its dtype; None for float32.

    Raises:
        InvalidArgumentError: If it cannot be loaded or is not a causal language model.
    """
    if isinstance(model, (str, Path)):
        place = _resolve("model", model, "language_model")
        model = _load_model("model", place, "causal", parse_device(device), parse_dtype(dtype))
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise InvalidArgumentError(
            "model", type(model).__name__, "must be a causal language model (AutoModelForCausalLM)"
        )
    return model


def load_reward_model(
    reward_model: str | Path | PreTrainedModel | RewardModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    normalize_score: bool = True,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> RewardModel:
    """Load a reward model.

    Args:
        reward_model: ``"embedded"``, ``"planted"``, a local folder, a hub id, a loaded sequence
            classifier, or a :class:`RewardModel`, which is returned as it is.
        tokenizer: The tokenizer of a loaded sequence classifier, which does not carry its own.
        normalize_score: See :class:`RewardModel`, which brings its own setting.
        device: Where to put a model that is loaded by name.
        dtype: Its dtype; None for float32.

    Raises:
        InvalidArgumentError: If it cannot be loaded or used as a reward model.
    """
    if isinstance(reward_model, (str, Path)):
        place = _resolve("reward_model", reward_model, "reward_model")
        model = _load_model(
            "reward_model", place, "classifier", parse_device(device), parse_dtype(dtype)
        )
        return RewardModel(model, _load_tokenizer(place), normalize_score)
    if isinstance(reward_model, PreTrainedModel):
        if tokenizer is None:
            raise InvalidArgumentError(
                "tokenizer", None, "a loaded reward model needs the tokenizer it was trained with"
            )
        return RewardModel(reward_model, tokenizer, normalize_score)
    if not callable(getattr(reward_model, "read", None)):
        raise InvalidArgumentError(
            "reward_model",
            reward_model,
            'pass "embedded", a folder, a hub id, a sequence classifier or a RewardModel',
        )
    return reward_model


def _resolve(argument: str, name: str | Path, embedded: str) -> str:
    if str(name) == "embedded":
        return str(EMBEDDED_FOLDER / embedded)
    if str(name) == "planted":
        return str(EMBEDDED_FOLDER / "planted" / embedded)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and argument != "tokenizer":
            raise InvalidArgumentError(
                argument, str(name), "the folder has no config.json; pass a Hugging Face folder"
            )
        return str(folder.resolve())
    text = str(name)
    if isinstance(name, Path) or text.count("/") > 1 or text.startswith((".", "/", "~")):
        raise InvalidArgumentError(argument, text, "no such folder")
    return text


def _cannot_load(argument: str, place: str, error: Exception) -> InvalidArgumentError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidArgumentError(
        argument,
        place,
        f'cannot be loaded; pass "embedded", a Hugging Face folder or a hub id ({reason})',
    )


@functools.cache
def _load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("tokenizer", place, error) from None


@contextmanager
def _quiet_if(is_small: bool) -> Iterator[None]:
    """No progress bar for what loads in an instant; others are shown as the user has them."""
    if not is_small or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@functools.cache
def _load_model(
    argument: str, place: str, kind: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    try:
        with _quiet_if(EMBEDDED_FOLDER in Path(place).parents):
            model, report = auto.from_pretrained(
                place,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(argument, place, error) from None
    if report["missing_keys"]:
        # The library would draw these weights at random, and the model would rate by chance.
        raise InvalidArgumentError(
            argument,
            place,
            f"the weights of {', '.join(sorted(report['missing_keys'])[:3])} are missing; pass a "
            f"trained {'causal language model' if kind == 'causal' else 'sequence classifier'}",
        )
    return model.to(device).eval()
