"""The frozen language model that the wrappers of one environment share.

Features, candidates and log-probabilities of a state come from the same forward pass. So there is
one reader per environment and model, and it remembers what the model said about the current texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor
from transformers import PreTrainedModel

from textgym.envs import TextEnvironment
from textgym.envs.task import token_lists
from textgym.errors import InvalidArgumentError
from textgym.models import Completions, load_language_model, load_tokenizer
from textgym.models.incremental import IncrementalLanguageModel, NextToken
from textgym.models.signature import longest_text

__all__ = ["SharedLanguageModel", "Texts", "shared_language_model"]

_shared: WeakKeyDictionary[Any, dict[int, SharedLanguageModel]] = WeakKeyDictionary()


class Texts(NamedTuple):
    """Texts as a language model reads them.

    Attributes:
        ids: Token ids of each text, prompt and completion; None for rows not requested.
        num_new_tokens: How many of the tokens were generated, int64, shape (batch,).
    """

    ids: list[list[int] | None]
    num_new_tokens: np.ndarray

    @classmethod
    def of(cls, completions: Completions, requested: np.ndarray | None = None) -> Self:
        """The texts of a batch.

        Args:
            completions: All rows of the batch.
            requested: The rows to read, bool, shape (batch,); None for all.
        """
        prompts, generated = token_lists(completions)
        wanted = [True] * len(prompts) if requested is None else requested.tolist()
        rows = zip(prompts, generated, wanted, strict=True)
        ids = [prompt + completion if is_wanted else None for prompt, completion, is_wanted in rows]
        return cls(ids, np.array([len(completion) for completion in generated]))


class SharedLanguageModel:
    """A frozen language model that reads the texts of one environment.

    Args:
        model: The language model.
        base: The text environment, single or batched; no reference to it is kept.

    Raises:
        InvalidArgumentError: If the model does not fit the environment.
    """

    def __init__(self, model: PreTrainedModel, base: TextEnvironment) -> None:
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
                f"it knows {known} tokens, and the environment's tokenizer has {self.vocab_size}; "
                "pass a model with the same tokenizer",
            )
        limit = longest_text(model)
        if limit is not None and base.max_length > limit:
            raise InvalidArgumentError(
                "model",
                type(model).__name__,
                f"texts may have {base.max_length} tokens, and it takes {limit}; use fewer new "
                "tokens or shorter prompts",
            )
        self._reader = IncrementalLanguageModel(model)

    def read(self, texts: Sequence[Sequence[int] | None]) -> NextToken:
        """What the model says about the end of each text; None for rows not requested.

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
            float32, shape (batch, vocab_size); minus infinity at illegal tokens.
        """
        logits = said.logits[:, : self.vocab_size]
        mask = torch.from_numpy(legal).to(logits.device)
        return logits.masked_fill(~mask, -torch.inf).log_softmax(dim=1)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of tokens, float32, shape (..., embedding_size)."""
        return self.model.get_input_embeddings()(ids).detach().float()


def shared_language_model(
    base: TextEnvironment, model: str | Path | PreTrainedModel
) -> SharedLanguageModel:
    """The reader of a model for an environment: the same one at every call.

    Args:
        base: The text environment, single or batched.
        model: See :func:`textgym.models.load_language_model`. A model that is loaded by name gets
            the device and the dtype of the reward model.

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


def _check_tokenizer(base: TextEnvironment, model: str | Path) -> None:
    try:
        tokenizer = load_tokenizer(model)
    except InvalidArgumentError:  # A folder without a tokenizer; loading reports other faults.
        return
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise InvalidArgumentError(
            "model",
            str(model),
            "its tokenizer differs from the environment's; pass a language model with the same "
            'tokenizer ("planted" for the planted task)',
        )
