"""Writes a training run into a folder, and reads it back.

A checkpoint holds no pickle, so reading it runs no code::

    config.json, model.safetensors   the policy for transformers; of one with adapters, these alone
    training.safetensors             every tensor that an exact continuation needs
    training.json                    everything else that it needs
    checksums.json                   SHA-256 of the other files

It is written under another name, forced to the disk and then renamed, so a folder with the right
name is complete, whatever interrupts the writing. Damage that comes later shows in the checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "CheckpointFolder",
    "agent_of_checkpoint",
    "describe_model",
    "find_checkpoint",
    "hyperparameters_of",
    "is_described",
    "model_from_description",
    "read_checkpoint",
    "write_checkpoint",
]

TENSORS, VALUES, CHECKSUMS = "training.safetensors", "training.json", "checksums.json"
NUMBERED = "checkpoints"
"""Folder of a run's numbered checkpoints, inside the run's own."""


def _format_of(agent: str) -> str:
    return f"textgym-{agent.lower()}-2"


# --- One checkpoint


def write_checkpoint(
    path: str | Path,
    agent: str,
    contents: dict[str, Any],
    export: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: The folder. A checkpoint that is there is replaced.
        agent: Name of the agent that can read it.
        contents: Nested dicts and lists of tensors, numbers, strings and None.
        export: Writes more files into the folder that it gets.

    Raises:
        InvalidArgumentError: If the path is that of something else.
        OSError: If it cannot be written, as when the disk is full. An earlier checkpoint stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path).expanduser().absolute()  # A relative path may have no name, as "." has.
    if path.exists() and not (path / VALUES).is_file():
        remedy = "is there already, and is no checkpoint: name another folder."
        raise InvalidArgumentError("path", str(path), remedy)
    unfinished, old = _hidden(path, "unfinished"), _hidden(path, "old")
    shutil.rmtree(unfinished, ignore_errors=True)  # Left by a process that was killed.
    unfinished.mkdir(parents=True)
    try:
        tensors = _Tensors()
        values = {"format": _format_of(agent), "contents": tensors.take_out(contents)}
        save_file(tensors.by_name, unfinished / TENSORS)
        (unfinished / VALUES).write_text(json.dumps(values), encoding="utf-8")
        export(unfinished)
        files = sorted(file for file in unfinished.iterdir() if file.is_file())
        checksums = {file.name: _checksum(file) for file in files}
        (unfinished / CHECKSUMS).write_text(json.dumps(checksums, indent=2), encoding="utf-8")
        for place in (*unfinished.iterdir(), unfinished):
            _force_to_disk(place)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)  # A folder cannot be replaced in one step; see _recover.
        unfinished.rename(path)
        _force_to_disk(path.parent)
    except SafetensorError as error:  # What it raises when the disk is full.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{path} cannot be written: {error}") from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(path: str | Path, agent: str) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote, with its tensors on the CPU.

    Args:
        path: The folder of a checkpoint, or of a run that has checkpoints.
        agent: Name of the agent that reads it.

    Raises:
        InvalidArgumentError: If there is none, it is damaged, or it belongs to another agent.
    """
    from safetensors.torch import load_file

    path = find_checkpoint(path)
    values = _read_values(path, agent)
    with _damage_named(path):
        contents: dict[str, Any] = _put_back(values, load_file(path / TENSORS))
    return contents


def hyperparameters_of(path: str | Path, agent: str) -> dict[str, Any]:
    """The hyperparameters in a checkpoint, without its tensors; see :func:`read_checkpoint`."""
    hyperparameters: dict[str, Any] = _read_values(find_checkpoint(path), agent)["hyperparameters"]
    return hyperparameters


def agent_of_checkpoint(path: str | Path) -> str:
    """Name of the agent that wrote a checkpoint, in lower case: "ppo", for example.

    Raises:
        InvalidArgumentError: If there is none, or it is damaged.
    """
    path = find_checkpoint(path)
    match = re.fullmatch(r"textgym-(\w+)-2", _read(path)["format"])
    if match is None:
        raise InvalidArgumentError("path", str(path), "it is not a checkpoint of an agent.")
    return match[1]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint in a folder, after a check that it is whole.

    Args:
        path: The folder of a checkpoint, or of a run: then the latest checkpoint that is whole.

    Raises:
        InvalidArgumentError: If there is none.
    """
    path = Path(path).expanduser().absolute()
    _recover(path)
    if (path / NUMBERED).is_dir():
        latest = CheckpointFolder(path).latest()
        if latest is None:
            raise InvalidArgumentError("path", str(path), "the run has no checkpoint.")
        return latest
    if path.is_file():
        remedy = "is a file; a checkpoint is a folder that an agent's save wrote."
        raise InvalidArgumentError("path", str(path), remedy)
    if not path.exists():
        raise InvalidArgumentError("path", str(path), "there is no such folder.")
    damage = _damage(path)
    if damage is not None:
        remedy = f"no checkpoint can be read here: {damage}."
        if (path / "metrics.jsonl").is_file():
            remedy = "the run has saved no checkpoint: it does with save_every=10, say."
        raise InvalidArgumentError("path", str(path), remedy)
    return path


# --- The checkpoints of a run


class CheckpointFolder:
    """Numbered checkpoints of a run, of which the last few are kept.

    Args:
        run: The run's folder; they are in ``checkpoints/`` in it.
        limit: How many to keep.
    """

    def __init__(self, run: str | Path, limit: int = 2) -> None:
        self.folder, self.limit = Path(run) / NUMBERED, limit

    def path(self, iteration: int) -> Path:
        """Where the checkpoint after so many iterations is."""
        return self.folder / f"{iteration:07d}"

    def all(self) -> list[Path]:
        """The checkpoints, the latest first."""
        folders = (path for path in self.folder.glob("*") if path.is_dir())
        numbered = [path for path in folders if path.name.isdecimal()]
        return sorted(numbered, key=lambda path: -int(path.name))

    def latest(self) -> Path | None:
        """The latest checkpoint that is whole; there is a warning for each that is not."""
        for path in self.all():
            damage = _damage(path)
            if damage is None:
                return path
            message = f"{path} is damaged ({damage}); looking for the checkpoint before it."
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None

    def forget_old(self, newest: Path) -> None:
        """Delete all but the last few of the run's course.

        Later ones are not of it: the run has gone on from an earlier checkpoint since.

        Args:
            newest: The checkpoint that was just written.
        """
        of_course = [path for path in self.all() if int(path.name) <= int(newest.name)]
        for path in set(self.all()) - set(of_course[: self.limit]):
            doomed = _hidden(path, "old")  # Half a folder must not look like a checkpoint.
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


# --- Models


def describe_model(model: PreTrainedModel) -> dict[str, str]:
    """A model's architecture, in plain values."""
    config = model.config
    return {
        "config": json.dumps(json.loads(config.to_json_string(use_diff=False))),
        "attn_implementation": str(config._attn_implementation),
    }


def model_from_description(description: dict[str, str], auto_class: Any = None) -> PreTrainedModel:
    """A model of this architecture in float32, with weights that are yet to be loaded.

    Args:
        description: What :func:`describe_model` returned.
        auto_class: Transformers' class for models of its kind; by default that of language models.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads(description["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    # Initialisation draws from the global generator; leave its state as it was.
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = (auto_class or AutoModelForCausalLM).from_config(
            config,
            dtype=torch.float32,
            attn_implementation=description["attn_implementation"],
        )
    return model.eval()


def is_described(model: PreTrainedModel) -> bool:
    """Whether a model of its description is one like it: of its class, with weights of its shapes.

    Not if it has adapters, or a class of the user's own. True if no such model can be built.

    Args:
        model: A language model.
    """
    try:
        with torch.device("meta"):
            other = model_from_description(describe_model(model))
    except Exception:  # Of code of other people's, which may fail in any way.
        return True
    shapes, own = (
        {name: tensor.shape for name, tensor in one.state_dict().items()} for one in (other, model)
    )
    return type(other) is type(model) and shapes == own


# --- Files


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _recover(path: Path) -> None:
    """Finish what was interrupted between the two renames of :func:`write_checkpoint`."""
    old = _hidden(path, "old")
    if not path.exists() and (old / CHECKSUMS).is_file():
        old.rename(path)


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _force_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot, and need not.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        checksums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        for name in (TENSORS, VALUES, *checksums):
            if _checksum(path / name) != checksums[name]:
                return f"{name} has another checksum than when it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read, {type(error).__name__}"
    return None


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What goes wrong in reading files whose checksums are right, as an error about the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(
            "path", str(path), f"no checkpoint can be read here ({type(error).__name__}: {error})."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    """Format and contents, without tensors."""
    with _damage_named(path):
        values: dict[str, Any] = json.loads((path / VALUES).read_text(encoding="utf-8"))
        return {"format": str(values["format"]), "contents": values["contents"]}


def _read_values(path: Path, agent: str) -> Any:
    """The contents of a checkpoint of this agent, without tensors."""
    values = _read(path)
    if values["format"] != _format_of(agent):
        raise InvalidArgumentError(
            "path", str(path), f"the folder is not a checkpoint that {agent}.save wrote."
        )
    return values["contents"]


# --- Tensors, apart from what fits into JSON

_TENSOR, _PAIRS = "<tensor>", "<pairs>"


class _Tensors:
    """Collects tensors out of nested containers, each once, though some may be met twice."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # by place in memory, shape and dtype

    def take_out(self, value: Any, name: str = "") -> Any:
        """The value, with the names of tensors where the tensors were."""
        if isinstance(value, Tensor):
            place = (value.data_ptr() or name, value.shape, value.stride(), value.dtype)
            if place not in self._names:
                self._names[place] = name
                self.by_name[name] = value.detach().contiguous()
            return {_TENSOR: self._names[place]}
        if isinstance(value, dict):
            taken = [(key, self.take_out(one, f"{name}/{key}")) for key, one in value.items()]
            # JSON would turn other keys into strings.
            return dict(taken) if all(isinstance(key, str) for key in value) else {_PAIRS: taken}
        if isinstance(value, list | tuple):
            return [self.take_out(one, f"{name}/{i}") for i, one in enumerate(value)]
        return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``take_out``."""
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if set(value) == {_PAIRS}:
            return {key: _put_back(one, tensors) for key, one in value[_PAIRS]}
        return {key: _put_back(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_put_back(one, tensors) for one in value]
    return value
