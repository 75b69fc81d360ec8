"""Prompt sources: where the first tokens of an episode come from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from textgym.errors import InvalidArgumentError
from textgym.reviews import load_reviews

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FixedPrompts",
    "PrefixPrompts",
    "PromptSource",
    "encode_prompts",
    "load_prompts",
    "read_dataset",
]

_EMBEDDED_PROMPTS = Path(__file__).parent / "models" / "embedded" / "prompts.json"
_READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
}
_USUAL_COLUMNS = ("prompt", "text")


class PromptSource(ABC):
    """Draws prompts as token ids.

    Attributes:
        max_length: Length of the longest possible prompt, in tokens.
        texts: By the tokens of a prompt, what rewards that read text see of it, where that is not
            the decoded tokens: of a chat, what is said, without the words of the chat template.
    """

    max_length: int
    texts: Mapping[tuple[int, ...], str] = MappingProxyType({})

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt.

        Args:
            rng: The generator to draw with; nothing else may be random.

        Returns:
            Token ids, at least one.
        """


class FixedPrompts(PromptSource):
    """Draws one of the given prompts, all with equal probability.

    Args:
        prompt_ids: Token ids of the prompts.
        texts: See :class:`PromptSource`.

    Raises:
        InvalidArgumentError: If there is no prompt, or if one is empty.
    """

    def __init__(
        self,
        prompt_ids: Sequence[Sequence[int]],
        texts: Mapping[tuple[int, ...], str] | None = None,
    ) -> None:
        self.prompt_ids = _checked(prompt_ids)
        self.max_length = max(map(len, self.prompt_ids))
        self.texts = texts or {}

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt; see :class:`PromptSource`."""
        return self.prompt_ids[int(rng.integers(len(self.prompt_ids)))]


class PrefixPrompts(PromptSource):
    """Draws a document, then uses a random number of its first tokens as the prompt.

    Args:
        document_ids: Token ids of the documents. The first ``num_special`` tokens of a document are
            in every prompt and do not count towards its length.
        min_tokens: Smallest length of a prompt.
        max_tokens: Largest length of a prompt. Shorter documents are left out.
        num_special: Number of special tokens that the tokenizer puts in front of a text.

    Raises:
        InvalidArgumentError: Unless 1 <= min_tokens <= max_tokens, or if no document is long
            enough.
    """

    def __init__(
        self,
        document_ids: Iterable[Sequence[int]],
        min_tokens: int = 2,
        max_tokens: int = 8,
        num_special: int = 0,
    ) -> None:
        if not 1 <= min_tokens <= max_tokens:
            raise InvalidArgumentError(
                "min_tokens", min_tokens, f"must lie between 1 and max_tokens={max_tokens}"
            )
        self.min_tokens, self.max_tokens, self.num_special = min_tokens, max_tokens, num_special
        self.max_length = num_special + max_tokens
        enough = [ids[: self.max_length] for ids in document_ids if len(ids) >= self.max_length]
        self._documents = _checked(enough)

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Draw one prompt; see :class:`PromptSource`."""
        document = self._documents[int(rng.integers(len(self._documents)))]
        length = int(rng.integers(self.min_tokens, self.max_tokens, endpoint=True))
        return document[: self.num_special + length]


def encode_prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Encode prompts with the tokenizer's defaults, including special tokens in front.

    Args:
        texts: The prompts.
        tokenizer: The environment's tokenizer.

    Returns:
        Token ids of each prompt.

    Raises:
        InvalidArgumentError: If the tokenizer adds an end token after a text, or if it has no token
            for a word and no token for unknown words.
    """
    try:
        encoded = tokenizer(list(texts), verbose=False)["input_ids"]
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise InvalidArgumentError(
            "prompts", texts, f"the tokenizer cannot encode them ({str(error).splitlines()[0]})"
        ) from None
    enders = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    bare = tokenizer(texts[0], add_special_tokens=False, verbose=False)["input_ids"]
    if encoded[0] and encoded[0][-1] in enders and encoded[0][-1:] != bare[-1:]:
        raise InvalidArgumentError(
            "tokenizer",
            type(tokenizer).__name__,
            f"it ends every text with {tokenizer.decode(encoded[0][-1:])!r}, so nothing could "
            "follow a prompt; use the tokenizer of a causal language model, without add_eos_token",
        )
    return [list(map(int, ids)) for ids in encoded]


def load_prompts(
    prompts: Any, tokenizer: PreTrainedTokenizerBase, column: str | None = None
) -> PromptSource:
    """Build a prompt source from whatever the user passes.

    Args:
        prompts: One of

            - ``"embedded"``: short review beginnings that ship with textgym;
            - ``"imdb"``: the first 2 to 8 tokens of the IMDb training reviews (extra
              ``textgym[imdb]``);
            - strings, each one a prompt;
            - conversations, each a list of messages with ``role`` and ``content``, the last one of
              the user: they are put into the tokenizer's chat template;
            - a ``datasets.Dataset``, a JSONL, JSON, CSV, Parquet or text file, or a hub dataset id
              (split ``train``), with one prompt per row;
            - a :class:`PromptSource`, which is returned as it is.
        tokenizer: The environment's tokenizer.
        column: Column of the prompts in a dataset or file. None for the column ``prompt``, else
            ``text``, else the only column.

    Raises:
        InvalidArgumentError: If the prompts cannot be read, if there are none, or if one is empty.
    """
    if isinstance(prompts, PromptSource):
        return prompts
    if isinstance(prompts, str) and prompts == "embedded":
        prompts = json.loads(_EMBEDDED_PROMPTS.read_text(encoding="utf-8"))
    elif isinstance(prompts, str) and prompts == "imdb":
        return _review_prefixes(tokenizer)
    elif isinstance(prompts, (str, Path)):
        prompts = _column(read_dataset(prompts), column)
    elif hasattr(prompts, "column_names"):
        prompts = _column(prompts, column)
    texts = list(prompts) if isinstance(prompts, Iterable) else None
    if texts and all(_is_conversation(text) for text in texts):
        return _conversations(texts, tokenizer)
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InvalidArgumentError(
            "prompts",
            prompts,
            'pass "embedded", "imdb", strings, conversations, a datasets.Dataset, a file or a hub '
            "dataset id",
        )
    if not texts:
        raise InvalidArgumentError("prompts", prompts, "there must be at least one prompt")
    return FixedPrompts(encode_prompts(texts, tokenizer))


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list | tuple)
        and len(prompt) > 0
        and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in prompt)
    )


def _conversations(
    conversations: Sequence[Any], tokenizer: PreTrainedTokenizerBase
) -> FixedPrompts:
    """Prompts in the chat template, and what the users say in them."""
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidArgumentError(
            "prompts",
            conversations[0],
            "the tokenizer has no chat template; pass strings, or the tokenizer of an instruct "
            "model",
        )
    texts = {}
    prompt_ids = []
    for messages in conversations:
        if messages[-1]["role"] != "user":
            raise InvalidArgumentError(
                "prompts", messages, "the last message must be the user's; the policy answers"
            )
        ids: Any = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
        prompt_ids.append([int(token) for token in ids])
        said = [str(one["content"]) for one in messages if one["role"] != "system"]
        texts[tuple(prompt_ids[-1])] = "\n".join(said)
    return FixedPrompts(prompt_ids, texts)


def _review_prefixes(tokenizer: PreTrainedTokenizerBase) -> PrefixPrompts:
    # A hundred characters contain more than eight tokens of any subword tokenizer.
    texts = [review.text[:100] for review in load_reviews("train", "imdb")]
    encoded = encode_prompts(texts, tokenizer)
    bare = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    return PrefixPrompts(encoded, num_special=len(encoded[0]) - len(bare))


def read_dataset(name: str | Path, argument: str = "prompts") -> Any:
    """Read a file or a hub dataset.

    Args:
        name: A JSONL, JSON, CSV, Parquet or text file, or a hub dataset id (split ``train``).
        argument: The argument that errors name.

    Raises:
        InvalidArgumentError: If it cannot be read.
    """
    import datasets

    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix not in _READERS:
            raise InvalidArgumentError(
                argument, str(name), f"unknown file type; use one of {', '.join(_READERS)}"
            )
        return datasets.load_dataset(
            _READERS[path.suffix], data_files=str(path.resolve()), split="train"
        )
    if path.suffix in _READERS or isinstance(name, Path):
        raise InvalidArgumentError(argument, str(name), "no such file")
    try:
        return datasets.load_dataset(str(name), split="train")
    except Exception as error:  # the hub client raises many exception classes, some of them private
        raise InvalidArgumentError(
            argument,
            str(name),
            f"neither a file nor a dataset that can be loaded ({str(error).splitlines()[0]})",
        ) from None


def _column(dataset: Any, column: str | None) -> list[Any]:
    names = list(dataset.column_names)
    if column is None:
        usual = [name for name in _USUAL_COLUMNS if name in names]
        column = usual[0] if usual else names[0] if len(names) == 1 else None
    if column not in names:
        raise InvalidArgumentError(
            "prompt_column", column, f"choose one of the columns {', '.join(map(repr, names))}"
        )
    return list(dataset[column])


def _checked(prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    if len(prompt_ids) == 0:
        raise InvalidArgumentError("prompts", prompt_ids, "there must be at least one prompt")
    for index, ids in enumerate(prompt_ids):
        if len(ids) == 0:
            raise InvalidArgumentError(
                "prompts",
                f"[{index}]",
                "is empty; every prompt needs at least one token",
            )
    return [list(ids) for ids in prompt_ids]
