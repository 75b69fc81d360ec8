"""Writes a training run into one file, and reads it back.

The file contains only tensors and plain values, so reading it runs no code
(``torch.load(weights_only=True)``). The language model is stored as its configuration and its
weights, so the folder or hub id that it came from is not needed again.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from textgym.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["describe_model", "model_from_description", "read_checkpoint", "write_checkpoint"]


def _format_of(agent: str) -> str:
    return f"textgym-{agent.lower()}-1"


def write_checkpoint(path: str | Path, agent: str, contents: dict[str, Any]) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: The file. Missing folders are created, an existing file is replaced.
        agent: Name of the agent that can read it.
        contents: Nested dicts and lists of tensors, numbers, strings and None.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save({"format": _format_of(agent), **contents}, unfinished)
    os.replace(unfinished, path)  # noqa: PTH105  an interruption leaves the old file intact


def read_checkpoint(path: str | Path, agent: str) -> dict[str, Any]:
    """Read a file of :func:`write_checkpoint`, with its tensors on the CPU.

    Args:
        path: The file.
        agent: Name of the agent that reads it.

    Raises:
        InvalidArgumentError: If the file does not exist, is damaged, or is not a checkpoint of this
            agent.
    """
    contents = _read(path, agent)
    if not isinstance(contents, dict) or contents.get("format") != _format_of(agent):
        raise InvalidArgumentError(
            "path", str(path), f"the file is not a checkpoint that {agent}.save wrote."
        )
    return contents


def agent_of_checkpoint(path: str | Path) -> str:
    """Name of the agent that wrote a checkpoint, in lower case: "ppo", for example.

    Raises:
        InvalidArgumentError: If the file does not exist, is damaged, or is not a checkpoint.
    """
    contents = _read(path, "an agent")
    match = re.fullmatch(
        r"textgym-(\w+)-1", str(contents.get("format") if isinstance(contents, dict) else None)
    )
    if match is None:
        raise InvalidArgumentError("path", str(path), "the file is not a checkpoint of an agent.")
    return match[1]


def _read(path: str | Path, agent: str) -> Any:
    if not Path(path).is_file():
        raise InvalidArgumentError("path", str(path), "there is no such file.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify checksums
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling other files can raise anything
        raise InvalidArgumentError(
            "path",
            str(path),
            f"the file is damaged, or is not a checkpoint that {agent}.save wrote "
            f"({type(error).__name__}).",
        ) from error


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
