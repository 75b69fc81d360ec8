"""Tiny models in folders, and a finished training run."""

from __future__ import annotations

import pytest

from tests.cli.commands import SMALL, flags
from textgym.cli import main


@pytest.fixture(scope="session")
def models(tmp_path_factory, language_model, classifier, tokenizer):
    """Flags that name tiny models and prompts in folders."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("language_model", language_model), ("reward_model", classifier)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.jsonl").write_text('{"prompt": "This film"}\n{"prompt": "I"}\n')
    return {
        "--policy": str(folder / "language_model"),
        "--reward-model": str(folder / "reward_model"),
        "--prompts": str(folder / "prompts.jsonl"),
    }


@pytest.fixture(scope="session")
def trained(models, tmp_path_factory):
    """The folder of a `textgym train` with two iterations; leave it as it is."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *flags(models), *SMALL, "--output", str(output)]) == 0
    return output
