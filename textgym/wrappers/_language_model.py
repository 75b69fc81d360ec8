"""The frozen language model that the wrappers of an environment share.

Features, candidates and log-probabilities of a state come from one forward pass: there is one
reader per environment and model, and it remembers what it said about the current texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor
from transformers import PreTrainedModel

from textgym.errors import InvalidArgumentError
from textgym.models import load_language_model, load_tokenizer
from textgym.models.incremental import IncrementalLanguageModel, NextToken

__all__ = ["SharedLanguageModel", "check_top_k", "shared_language_model"]

_shared: WeakKeyDictionary[Any, dict[int, SharedLanguageModel]] = WeakKeyDictionary()


class SharedLanguageModel:
    """A frozen language model that reads the texts of one environment.

    Args:
        model: The language model.
        base: The text environment, single or batched; it is not kept.

    Raises:
        InvalidArgumentError: If the model does not fit the environment.
    """

    def __init__(self, model: PreTrainedModel, base: Any) -> None:
        self.model = model
        self.vocab_size: int = base.task.vocab_size
        before: Any = model.get_input_embeddings()
        after: Any = model.get_output_embeddings()
        self.embedding_size = int(before.weight.shape[1])
        self.hidden_size = int(after.weight.shape[1])
        known = min(len(before.weight), len(after.weight))
        if known < self.vocab_size:
            raise InvalidArgumentError(
                "model",
                type(model).__name__,
                f"it knows {known} tokens, and the environment's tokenizer {self.vocab_size}; "
                "pass a model of the same tokenizer",
            )
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and base.max_length > limit:
            raise InvalidArgumentError(
                "model",
                type(model).__name__,
                f"texts may have {base.max_length} tokens, and it takes {limit}; use fewer new "
                "tokens or shorter prompts",
            )
        self._reader = IncrementalLanguageModel(model)

    def read(self, texts: Sequence[Sequence[int] | None]) -> NextToken:
        """What the model says about the end of each text; None where nobody asks.

        Raises:
            ResetNeeded: If there is no text yet.
        """
        if not any(texts):
            raise ResetNeeded("call reset() before step()")
        return self._reader.read(texts)

    def logprobs(self, said: NextToken, legal: np.ndarray) -> Tensor:
        """Log-probabilities of the next token, normalised over the legal ones.

        Args:
            said: What :meth:`read` returned.
            legal: Which tokens are legal, shape (batch, vocab_size), bool.

        Returns:
            float32, shape (batch, vocab_size); minus infinity at the others.
        """
        logits = said.logits[:, : self.vocab_size]
        mask = torch.from_numpy(legal).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf).log_softmax(dim=1)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of tokens, float32, shape (..., embedding_size)."""
        return self.model.get_input_embeddings()(ids).detach().float()


def shared_language_model(base: Any, model: str | Path | PreTrainedModel) -> SharedLanguageModel:
    """The reader of a model for an environment; always the same one.

    Args:
        base: The text environment, single or batched.
        model: See :func:`textgym.models.load_language_model`. One that is loaded by name goes
            where the reward model is, and has its dtype.

    Raises:
        InvalidArgumentError: If the model cannot be loaded or does not fit the environment.
    """
    if isinstance(model, str | Path):
        _check_tokenizer(base, model)
    device = getattr(base.reward_model, "device", "cpu")
    loaded = load_language_model(model, device, getattr(base.reward_model, "dtype", None))
    readers = _shared.setdefault(base, {})
    if id(loaded) not in readers:
        readers[id(loaded)] = SharedLanguageModel(loaded, base)
    return readers[id(loaded)]


def _check_tokenizer(base: Any, model: str | Path) -> None:
    try:
        tokenizer = load_tokenizer(model)
    except InvalidArgumentError:  # A folder of weights alone; what is wrong with it comes later.
        return
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise InvalidArgumentError(
            "model",
            str(model),
            "its tokenizer differs from the environment's; pass a language model of the same one "
            '("planted" for the planted task)',
        )


def check_top_k(argument: str, k: Any, vocab_size: int) -> int:
    """Check a number of candidates.

    Raises:
        InvalidArgumentError: If there may be states with fewer legal tokens.
    """
    is_whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not is_whole or not 1 <= k < vocab_size:
        raise InvalidArgumentError(
            argument, k, f"must be a whole number from 1 to {vocab_size - 1}: EOS may be illegal"
        )
    return int(k)
